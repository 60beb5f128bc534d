//! Renews the leases of this process, in batches.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::lease::{Lease, nanos};
use super::store_client::StoreClient;
use crate::clock::Clock;
use crate::events::What;
use crate::lock::Mutex;
use crate::store::{Renewal, Token, WriteOutcome};

/// The maximum number of leases that one request to the store renews.
const BATCH: usize = 1000;

/// The leases that are renewed.
pub(super) struct Renewals {
    store: StoreClient,
    clock: Arc<dyn Clock>,
    leases: Mutex<Leases>,
    earlier: Notify,
    goes_on: AtomicBool,
}

struct Leases {
    /// Sorted, so that a simulation renews in the same order again.
    by_token: BTreeMap<Token, Arc<Lease>>,
    /// The time of the next scheduled look, in monotonic nanoseconds.
    next_round: u64,
}

impl Renewals {
    pub(super) fn new(store: StoreClient, clock: Arc<dyn Clock>) -> Self {
        let leases = Mutex::new(Leases { by_token: BTreeMap::new(), next_round: u64::MAX });
        let (earlier, goes_on) = (Notify::new(), AtomicBool::new(true));
        Self { store, clock, leases, earlier, goes_on }
    }

    fn leases(&self) -> std::sync::MutexGuard<'_, Leases> {
        self.leases.lock()
    }

    /// Renews `lease` from now on.
    pub(super) fn keep(&self, lease: &Arc<Lease>) {
        let mut leases = self.leases();
        leases.by_token.insert(lease.token, lease.clone());
        if lease.due() < leases.next_round {
            self.earlier.notify_one();
        }
    }

    /// Ends the renewals of `lease`.
    pub(super) fn forget(&self, lease: &Lease) {
        self.leases().by_token.remove(&lease.token);
    }

    pub(super) fn all(&self) -> Vec<Arc<Lease>> {
        self.leases().by_token.values().cloned().collect()
    }

    pub(super) fn are_none(&self) -> bool {
        self.leases().by_token.is_empty()
    }

    /// Ends [`run`](Self::run).
    pub(super) fn end(&self) {
        self.goes_on.store(false, Ordering::Release);
        self.earlier.notify_one();
    }

    /// Renews what is due, until [`end`](Self::end).
    pub(super) async fn run(self: Arc<Self>) {
        while self.goes_on.load(Ordering::Acquire) {
            for batch in self.due() {
                tokio::spawn(self.clone().renew(batch));
            }
            let next_round = self.leases().next_round;
            let pause =
                Duration::from_nanos(next_round.saturating_sub(nanos(self.clock.monotonic())));
            let sleep = self.clock.sleep(pause);
            if nanos(self.clock.monotonic()) >= next_round {
                // The clock has moved since `pause` was computed, so the sleep would be late.
                continue;
            }
            tokio::select! {
                biased;
                () = self.earlier.notified() => {}
                () = sleep, if next_round < u64::MAX => {}
            }
        }
    }

    /// Returns the leases to renew now: those that are due, and those that will be soon. Only
    /// leases of the same length share a batch, because the batch waits for the store for as long
    /// as they allow.
    fn due(&self) -> Vec<Vec<Arc<Lease>>> {
        let mut leases = self.leases();
        let now = self.clock.monotonic();
        let may_not_go_on = |lease: &&Arc<Lease>| lease.due() < u64::MAX && lease.term_is_over(now);
        for lease in leases.by_token.values().filter(may_not_go_on) {
            tracing::warn!(operation = %lease.operation, key = %lease.key,
                has_ended = lease.has_body_ended(),
                "a body has run for as long as `max_run` allows, or has ended and its call makes no \
                 progress: its lease is no longer renewed, and its policy decides when that has \
                 expired");
            lease.stop_renewal();
        }
        let next = |leases: &Leases| {
            leases.by_token.values().map(|lease| lease.due()).min().unwrap_or(u64::MAX)
        };
        let mut due: BTreeMap<Duration, Vec<Arc<Lease>>> = BTreeMap::new();
        if next(&leases) <= nanos(now) {
            let soon = |lease: &&Arc<Lease>| lease.due() <= nanos(now + lease.length() / 6);
            for lease in leases.by_token.values().filter(soon) {
                // Until the answer determines when the next renewal is due.
                lease.stop_renewal();
                due.entry(lease.length()).or_default().push(lease.clone());
            }
        }
        leases.next_round = next(&leases);
        due.values().flat_map(|leases| leases.chunks(BATCH)).map(<[_]>::to_vec).collect()
    }

    /// Renews leases that have the same length.
    async fn renew(self: Arc<Self>, batch: Vec<Arc<Lease>>) {
        let renewals = batch
            .iter()
            .map(|lease| Renewal::new(lease.key, lease.token, lease.length()))
            .collect();
        let patience = batch.first().map(|lease| lease.length() / 3).unwrap_or_default();
        let sent = self.clock.monotonic();
        let (written, error) = match self.store.renew(patience, renewals).await {
            Ok(written) => (written, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let answers = written.into_iter().chain(std::iter::repeat(WriteOutcome::Unanswered));
        let mut unanswered = 0;
        for (lease, written) in batch.iter().zip(answers) {
            if written == WriteOutcome::Unanswered {
                unanswered += 1;
                lease.retry_renewal(self.clock.monotonic());
            } else {
                self.note(lease, written, sent);
            }
        }
        if unanswered > 0 {
            let error = error.map_or_else(
                || "their records could not be reached".to_owned(),
                |error| error.to_string(),
            );
            tracing::warn!(
                store = self.store.name(),
                leases = unanswered,
                error,
                "leases could not be renewed"
            );
        }
        let leases = batch.len();
        self.store.observers().tell(None, None, What::Renewed { leases, unanswered });
        self.earlier.notify_one();
    }

    fn note(&self, lease: &Lease, written: WriteOutcome, sent: Duration) {
        if written.is_done() {
            lease.note_renewed(sent);
        } else {
            lease.stop_renewal();
            // A record that is gone has no owner: the claim stays valid for the rest of the lease.
            let still_owned = self.leases().by_token.contains_key(&lease.token);
            // After the body, the owner's last write may have been applied while its answer was lost:
            // then it is that write which has ended the claim, and another owner came after it. The
            // write is sent again and gets the same answer, and the end of the lease says whose it
            // is.
            if written == WriteOutcome::Lost && still_owned && !lease.has_body_ended() {
                tracing::warn!(key = %lease.key, "the lease was lost: another caller may have taken the call over");
                self.store.observers().tell(
                    Some(&lease.operation),
                    Some(&lease.key),
                    What::LeaseLost,
                );
                lease.give_up();
            }
        }
    }
}
