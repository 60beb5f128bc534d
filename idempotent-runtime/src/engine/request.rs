//! The request of a call, and its validation.

use std::sync::Arc;
use std::time::Duration;

use super::instance::Instance;
use super::operations::Site;
use super::report::Report;
use super::settings::{Settings, check_conflict, check_pause, check_time};
use super::task_state::TaskState;
use super::verify::SETTLE;
use super::window::Windowed;
use super::{Idempotency, Inner, exit};
use crate::clock::whole_millis;
use crate::error::{Error, ErrorKind};
use crate::events::{Outcome, What};
use crate::fingerprint::Fingerprint;
use crate::key::{Key, KeyHash, hash_key};
use crate::policy::OnConflict;
use crate::store::{CrashPolicy, StoreError};

/// A request as the user made it, not validated yet.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(super) engine: Result<Idempotency, Error>,
    pub(super) operation: Operation,
    pub(super) key: Key,
    pub(super) scope: Option<Key>,
    pub(super) fingerprint: Result<Option<Fingerprint>, Error>,
    pub(super) former_fingerprints: Result<Vec<Option<Fingerprint>>, Error>,
    pub(super) ttl: Option<Duration>,
    pub(super) lease: Option<Duration>,
    pub(super) on_conflict: Option<Conflict>,
    pub(super) policy: CrashPolicy,
    pub(super) settle: Duration,
    pub(super) after_expiry: Option<Duration>,
    pub(super) version: u32,
    pub(super) count_attempts: bool,
}

/// The name of the operation.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    Named(Arc<str>),
    /// With the instance of the function, if the user has not given the name.
    Site(&'static Site, Option<fn() -> Instance>),
}

/// The call's behaviour towards others with its key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Conflict {
    /// Wait for as long as the engine's setting allows.
    Wait,
    As(OnConflict),
}

const MILLI: Duration = Duration::from_millis(1);

/// A request that was refused before it had a record.
pub(super) struct Invalid {
    engine: Option<Arc<Inner>>,
    error: Error,
}

impl Invalid {
    /// Reports the end of the call, and returns its error.
    pub(super) fn refused(self, task_state: &TaskState) -> Error {
        let Self { engine, error } = self;
        let (report, outcome) = (Report::of_refusal(&error), Outcome::Refused(error.kind()));
        match engine {
            Some(engine) => exit::at_once(&engine, task_state, report, outcome),
            None => exit::without_engine(task_state, report, outcome),
        }
        error
    }
}

/// A validated request.
#[derive(Clone)]
pub(crate) struct CheckedCall {
    pub(crate) engine: Arc<Inner>,
    pub(crate) operation: Arc<str>,
    pub(crate) key: KeyHash,
    pub(super) windowed: Option<Windowed>,
    /// The time for which its result is kept at least: the length of the key's window, and a
    /// millisecond.
    pub(super) least_ttl: Duration,
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(super) former_fingerprints: Vec<Option<Fingerprint>>,
    pub(crate) ttl: Duration,
    pub(crate) lease: Duration,
    pub(crate) on_conflict: OnConflict,
    pub(crate) policy: CrashPolicy,
    pub(super) settle: Duration,
    pub(super) after_expiry: Duration,
    pub(crate) version: u32,
    pub(crate) count_attempts: bool,
}

impl Request {
    pub(super) fn new(engine: Result<Idempotency, Error>, operation: Operation, key: Key) -> Self {
        Self {
            engine,
            operation,
            key,
            scope: None,
            fingerprint: Ok(None),
            former_fingerprints: Ok(Vec::new()),
            ttl: None,
            lease: None,
            on_conflict: None,
            policy: CrashPolicy::Hold,
            settle: SETTLE,
            after_expiry: None,
            version: 0,
            count_attempts: false,
        }
    }

    /// Turns the request into one of a call that verifies after a crash.
    pub(super) fn verifying(mut self) -> Self {
        self.policy = CrashPolicy::Verify;
        self
    }

    pub(super) fn add_former(&mut self, former: Result<Option<Fingerprint>, Error>) {
        match (&mut self.former_fingerprints, former) {
            (Ok(all), Ok(former)) => all.push(former),
            (all, Err(error)) => *all = Err(error),
            (Err(_), Ok(_)) => {}
        }
    }

    /// The schema version that the caller reads.
    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    pub(super) fn check(self) -> Result<CheckedCall, Invalid> {
        match &self.engine {
            Ok(engine) => {
                let engine = engine.inner.clone();
                self.checked().map_err(|error| Invalid { engine: Some(engine), error })
            }
            Err(error) => {
                let name = match &self.operation {
                    Operation::Named(name) => name.clone(),
                    Operation::Site(site, _) => site.name().into(),
                };
                Err(Invalid { engine: None, error: error.clone().of_operation(&name) })
            }
        }
    }

    fn check_times(
        &self,
        settings: &Settings,
        ttl: Duration,
        lease: Duration,
    ) -> Result<(), Error> {
        let (retention, ceiling) = (MILLI..=settings.max_ttl, settings.max_ttl);
        if !retention.contains(&ttl) {
            return Err(Error::config(format!(
                "`ttl` is {ttl:?}; it must be from 1ms to {ceiling:?}"
            )));
        }
        check_time("lease", lease)?;
        check_pause("settle", self.settle)?;
        if self.policy == CrashPolicy::Verify && self.settle >= settings.max_run {
            return Err(Error::config(format!(
                "`settle` ({:?}) is not shorter than `max_run` ({:?}): no call would ever ask",
                self.settle, settings.max_run
            )));
        }
        if let Some(Conflict::As(on_conflict)) = self.on_conflict {
            check_conflict(on_conflict)?;
        }
        if let Some(after_expiry) = self.after_expiry.filter(|time| !retention.contains(time)) {
            return Err(Error::config(format!(
                "`after_expiry` is {after_expiry:?}; it must be from 1ms to {ceiling:?}"
            )));
        }
        if self.lease.is_some_and(|lease| lease > ttl) {
            return Err(Error::config(format!(
                "`ttl` ({ttl:?}) is shorter than `lease` ({lease:?})"
            )));
        }
        Ok(())
    }

    pub(crate) fn checked(self) -> Result<CheckedCall, Error> {
        let named = |error: Error, operation: &Arc<str>| error.of_operation(operation);
        let engine = self.engine.clone()?.inner;
        let operation: Arc<str> = match &self.operation {
            Operation::Named(name) => name.clone(),
            Operation::Site(site, instance) => {
                engine.operations.name_of(site, instance.map(|of| of()))?
            }
        };
        let settings = &engine.settings;
        let checked = || -> Result<_, Error> {
            if operation.is_empty() {
                return Err(Error::config("the operation has no name"));
            }
            let ttl = self.ttl.ok_or_else(|| {
                Error::config("the call has no `ttl`; set how long its result is kept")
            })?;
            let lease = self.lease.unwrap_or(settings.lease);
            self.check_times(settings, ttl, lease)?;
            let after_expiry = self.after_expiry.unwrap_or_default();
            let scope = self
                .scope
                .as_ref()
                .map_or(Ok(&[][..]), |scope| scope.as_scope(settings.max_key_size))?;
            let number =
                self.key.window().map_or(0, |_| self.key.window_number(engine.clock.now()));
            let canonical = self.key.in_window(number, settings.max_key_size)?;
            let key = hash_key(&settings.namespace, scope, &operation, &canonical);
            let windowed = match self.key.window() {
                Some(length) if length > ttl => {
                    let detail = format!(
                        "`ttl` ({ttl:?}) is shorter than the window of the key ({length:?})"
                    );
                    return Err(Error::config(detail));
                }
                Some(_) => Some(Windowed { scope: scope.to_vec(), key: self.key.clone() }),
                None => None,
            };
            // Expiry counts from the beginning of the millisecond in which the result is stored. A
            // repetition within the length of a window is promised up to the last fraction of a
            // millisecond.
            let window = self.key.window().map(|length| whole_millis(length) + MILLI);
            let edge = if windowed.is_some() { MILLI } else { Duration::ZERO };
            let ttl = whole_millis(ttl) + edge;
            Ok((
                ttl,
                window.unwrap_or_default(),
                whole_millis(after_expiry),
                lease,
                key,
                windowed,
                self.fingerprint.clone()?,
                self.former_fingerprints.clone()?,
            ))
        };
        let (ttl, least_ttl, after_expiry, lease, key, windowed, fingerprint, former_fingerprints) =
            checked().map_err(|error| named(error, &operation))?;
        let on_conflict = match self.on_conflict {
            None => settings.on_conflict,
            Some(Conflict::Wait) => OnConflict::Wait(settings.wait()),
            Some(Conflict::As(on_conflict)) => on_conflict,
        };
        let (policy, version, count_attempts) = (self.policy, self.version, self.count_attempts);
        Ok(CheckedCall {
            engine,
            operation,
            key,
            windowed,
            least_ttl,
            fingerprint,
            former_fingerprints,
            ttl,
            lease,
            on_conflict,
            policy,
            settle: self.settle,
            after_expiry,
            version,
            count_attempts,
        })
    }
}

impl CheckedCall {
    pub(crate) fn refused(&self, kind: ErrorKind) -> Error {
        Error::new(kind).of_record(Some(&self.operation), &self.key)
    }

    /// Reports an event of this call.
    pub(super) fn tell(&self, what: What<'_>) {
        self.engine.observers.tell(Some(&self.operation), Some(&self.key), what);
    }

    pub(crate) fn store_error(&self, error: StoreError) -> Error {
        self.engine.store_error(error).of_record(Some(&self.operation), &self.key)
    }

    /// Returns true if a record with this fingerprint belongs to this very request, as made by this
    /// release or by one before it.
    pub(crate) fn accepts(&self, recorded: Option<Fingerprint>) -> bool {
        !Fingerprint::contradicts(recorded, self.fingerprint)
            || self.former_fingerprints.contains(&recorded)
    }

    /// The retention of an unfinished record of this call.
    pub(crate) fn linger(&self) -> Duration {
        self.engine.settings.linger(self.ttl)
    }

    /// The time that this call waits for another caller; `None` if it does not wait.
    pub(crate) fn patience(&self) -> Option<Duration> {
        match self.on_conflict {
            OnConflict::Wait(patience) => Some(patience),
            OnConflict::Reject => None,
        }
    }
}
