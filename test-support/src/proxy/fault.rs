//! Faults, and when they strike.

use std::fmt;

use anyhow::Context as _;
use tokio::sync::oneshot;

use super::Request;
use crate::deadline::within;

/// The fault that strikes one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub(super) moment: Moment,
    pub(super) action: Action,
}

impl Fault {
    /// Creates a fault: `action` at `moment`.
    pub const fn new(moment: Moment, action: Action) -> Self {
        Self { moment, action }
    }
}

/// The moment at which a fault strikes. Earlier requests of the connection have reached the server;
/// their answers may be lost too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// No byte of the request reaches the server.
    BeforeRequest,
    /// The first half of the request reaches the server.
    InsideRequest,
    /// The server has answered; no byte of the answer reaches the client.
    AfterRequest,
    /// The first half of the answer reaches the client.
    InsideAnswer,
}

impl Moment {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::BeforeRequest, Self::InsideRequest, Self::AfterRequest, Self::InsideAnswer];
}

/// The effect on the connection. Nothing that arrives on it later is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is closed: the client reads the end of the stream.
    Close,
    /// It is reset: the client reads an error.
    Reset,
    /// It stays open, and the client receives nothing more.
    Silence,
}

/// A planned fault.
#[derive(Debug)]
pub struct Planned(oneshot::Receiver<()>);

impl Planned {
    /// Waits until the fault has struck.
    ///
    /// # Errors
    /// If it does not strike in time, or was cleared.
    pub async fn happened(self) -> anyhow::Result<()> {
        within("the fault to strike", self.0)
            .await?
            .context("the fault was cleared before it struck")
    }
}

type Matches = Box<dyn Fn(&Request) -> bool + Send>;

/// A fault that waits for its request.
pub(super) struct Plan {
    matches: Matches,
    fault: Fault,
    wait: Wait,
}

enum Wait {
    /// Waits for this many matching requests, the last of which meets the fault.
    For(usize, Option<oneshot::Sender<()>>),
    Always,
}

/// A fault that has found its request.
#[derive(Debug)]
pub(super) struct Struck {
    pub(super) fault: Fault,
    announce: Option<oneshot::Sender<()>>,
}

impl Struck {
    /// Notifies the test, which may have stopped listening.
    pub(super) fn announce(self) -> Action {
        if let Some(announce) = self.announce {
            let _ = announce.send(());
        }
        self.fault.action
    }
}

impl Plan {
    pub(super) fn new(nth: usize, matches: Matches, fault: Fault) -> (Self, Planned) {
        let (announce, happened) = oneshot::channel();
        (Self { matches, fault, wait: Wait::For(nth, Some(announce)) }, Planned(happened))
    }

    pub(super) fn always(matches: Matches, fault: Fault) -> Self {
        Self { matches, fault, wait: Wait::Always }
    }

    fn meet(&mut self, request: &Request) -> Option<Struck> {
        if !(self.matches)(request) {
            return None;
        }
        match &mut self.wait {
            Wait::Always => Some(Struck { fault: self.fault, announce: None }),
            Wait::For(left, announce) => {
                *left = left.saturating_sub(1);
                (*left == 0).then(|| Struck { fault: self.fault, announce: announce.take() })
            }
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.wait, Wait::For(0, _))
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("fault", &self.fault).finish_non_exhaustive()
    }
}

/// Returns the fault that `request` meets, if any. A plan that has struck is removed.
pub(super) fn meet(plans: &mut Vec<Plan>, request: &Request) -> Option<Struck> {
    let struck = plans.iter_mut().find_map(|plan| plan.meet(request));
    plans.retain(|plan| !plan.is_over());
    struck
}
