//! An owner: renews, has its effect, and ends well, badly or too late.

use std::time::Duration;

use bytes::Bytes;
use idempotency::record::State;
use idempotency::store::{
    Abandon, Claim, Commit, Grant, Park, Reason, Release, Renewal, Store, WriteOutcome,
};
use idempotency_test_support::history::Outcome;
use idempotency_test_support::random::Random;

use crate::caller::result_of;
use crate::log::{self, Answered, Belief, Fence, Span, Write};
use crate::scene::{Scene, answered};

const HOUR: Duration = Duration::from_secs(3_600);
/// Stores count milliseconds: an owner stops a little before its lease does.
const MARGIN: Duration = Duration::from_millis(5);

pub struct Owner<'a, S> {
    scene: &'a Scene<S>,
    claim: Claim,
    attempt: u32,
    granted: log::Grant,
}

impl<'a, S: Store> Owner<'a, S> {
    pub fn new(scene: &'a Scene<S>, claim: Claim, grant: &Grant, granted: log::Grant) -> Self {
        let owner = Self { scene, claim, attempt: grant.record.attempts, granted };
        owner.note(|known| known.grants.push(granted));
        owner.believes(granted.span);
        owner
    }

    /// What its caller gets; `None` if it dies before that.
    pub async fn works(self, random: &mut Random) -> anyhow::Result<Option<Outcome>> {
        if random.chance(6) {
            return Ok(self.dies());
        }
        if random.chance(50) {
            self.asks_for_its_fence().await?;
        }
        if random.chance(6) {
            self.stalls(random).await;
            if random.chance(50) {
                return self.gives_back(random).await;
            }
        } else if self.granted.span.first_sent.elapsed() > self.claim.lease * 4 / 5
            || random.chance(16)
        {
            return self.gives_back(random).await;
        }
        // From here on the body runs, whatever becomes of the lease.
        if random.chance(15) {
            self.takes_long(random).await?;
        } else {
            tokio::time::sleep(random.duration_below(self.claim.lease / 8)).await;
        }
        let result = self.effect(random);
        match random.below(100) {
            0..8 => return Ok(self.dies()),
            8..16 => {
                self.stalls(random).await;
                if random.chance(40) {
                    self.renews().await?;
                }
            }
            16..22 => return self.leaves(random).await,
            22..28 => self.renews().await?,
            _ => {}
        }
        if random.chance(5) {
            return self.dies_at_its_commit(result, random).await;
        }
        self.commits(result, random).await
    }

    /// Does nothing any more, and says nothing to anybody.
    fn dies(&self) -> Option<Outcome> {
        self.note(|known| known.dead.insert(self.claim.token));
        None
    }

    /// Stands still until its lease is over for certain.
    async fn stalls(&self, random: &mut Random) {
        tokio::time::sleep(self.claim.lease + random.duration_below(self.claim.lease)).await;
    }

    async fn asks_for_its_fence(&self) -> anyhow::Result<()> {
        let (fence, span) =
            answered(|| self.scene.store.fence(self.claim.key, self.claim.token)).await?;
        let token = self.claim.token;
        self.note(|known| known.fences.extend(fence.map(|number| Fence { token, number, span })));
        Ok(())
    }

    /// Longer than its lease, with renewals, of which some are missing.
    async fn takes_long(&self, random: &mut Random) -> anyhow::Result<()> {
        for _ in 0..random.below(8) {
            tokio::time::sleep(self.claim.lease / 3).await;
            if random.chance(80) {
                self.renews().await?;
            }
        }
        Ok(())
    }

    async fn renews(&self) -> anyhow::Result<()> {
        let renewal = Renewal::new(self.claim.key, self.claim.token, self.claim.lease);
        let (written, span) = answered(|| self.scene.store.renew(vec![renewal])).await?;
        anyhow::ensure!(written.len() == 1, "one renewal has {} answers", written.len());
        self.wrote(Write::Renew, written[0], span);
        if written[0].is_done() {
            self.believes(Span { first_sent: span.sent, ..span });
        }
        Ok(())
    }

    /// Something happens in the world outside.
    fn effect(&self, random: &mut Random) -> Bytes {
        let filling = if random.chance(10) { 20_000 } else { 0 };
        let result =
            Bytes::from(format!("result {} {}", self.scene.next_result(), "x".repeat(filling)));
        self.note(|known| known.effect(self.claim.token, self.attempt, result.clone()));
        result
    }

    /// Nothing has happened: the claim goes back, and to the next if an earlier owner may have done
    /// something.
    async fn gives_back(&self, random: &mut Random) -> anyhow::Result<Option<Outcome>> {
        self.gives_up();
        let mut release = Release::new(self.claim.key, self.claim.token);
        release.keep_attempts = random.chance(30);
        let (written, span) = answered(|| self.scene.store.release(release)).await?;
        self.wrote(Write::Release, written, span);
        Ok(Some(Outcome::Error("given back".into())))
    }

    /// Its effect has happened, and it cannot say how it ended.
    async fn leaves(&self, random: &mut Random) -> anyhow::Result<Option<Outcome>> {
        self.gives_up();
        let (key, token) = (self.claim.key, self.claim.token);
        if random.chance(50) {
            let park = Park::own(key, token, Reason::Error);
            let (written, span) = answered(|| self.scene.store.park(park)).await?;
            self.wrote(Write::Park, written, span);
        } else {
            let abandon = Abandon::new(key, token, Reason::Panicked);
            let (written, span) = answered(|| self.scene.store.abandon(abandon)).await?;
            self.wrote(Write::Abandon, written, span);
        }
        self.dies();
        Ok(Some(Outcome::Error("InDoubt".into())))
    }

    fn commit(&self, result: Bytes, random: &mut Random) -> Commit {
        let mut commit = Commit::new(self.claim.key, self.claim.token, result, HOUR);
        if random.chance(15) {
            commit.state = State::Failed;
        }
        commit
    }

    /// Its commit may be under way, or not.
    async fn dies_at_its_commit(
        &self,
        result: Bytes,
        random: &mut Random,
    ) -> anyhow::Result<Option<Outcome>> {
        let commit = self.commit(result, random);
        let _ = tokio::time::timeout(
            random.duration_below(Duration::from_millis(2)),
            self.scene.store.complete(commit),
        )
        .await;
        Ok(self.dies())
    }

    async fn commits(&self, result: Bytes, random: &mut Random) -> anyhow::Result<Option<Outcome>> {
        let commit = self.commit(result, random);
        let once = || answered(|| self.scene.store.complete(commit.clone()));
        self.gives_up();
        let is_done = if random.chance(20) {
            let (first, second) = tokio::join!(once(), once());
            let ((first, span), (second, other)) = (first?, second?);
            self.wrote(Write::Commit, first, span);
            self.wrote(Write::Commit, second, other);
            anyhow::ensure!(
                first.is_done() == second.is_done(),
                "a commit sent twice is {first:?} and {second:?}"
            );
            anyhow::ensure!(
                (first, second) != (WriteOutcome::Applied, WriteOutcome::Applied),
                "a commit sent twice was applied twice"
            );
            first.is_done()
        } else {
            let (written, span) = once().await?;
            self.wrote(Write::Commit, written, span);
            written.is_done()
        };
        if is_done {
            return Ok(Some(match commit.state {
                State::Failed => Outcome::StoredError(commit.body.to_vec()),
                _ => Outcome::Value(commit.body.to_vec()),
            }));
        }
        // What others made of it is what the caller gets.
        let (record, _) = answered(|| self.scene.store.read(self.claim.key)).await?;
        Ok(Some(
            record
                .as_ref()
                .and_then(result_of)
                .unwrap_or_else(|| Outcome::Error("Superseded".into())),
        ))
    }

    fn wrote(&self, write: Write, answer: WriteOutcome, span: Span) {
        self.note(|known| {
            known.writes.push(Answered { token: self.claim.token, write, answer, span });
        });
    }

    /// Until the lease of the request that was sent then is over.
    fn believes(&self, span: Span) {
        let until = span.first_sent + self.claim.lease.saturating_sub(MARGIN);
        if span.answered < until {
            let belief = Belief { token: self.claim.token, from: span.answered, until };
            self.note(|known| known.beliefs.push(belief));
        }
    }

    fn gives_up(&self) {
        self.note(|known| known.gives_up(self.claim.token));
    }

    fn note<A>(&self, note: impl FnOnce(&mut log::Key) -> A) -> A {
        self.scene.log.of(self.claim.key, note)
    }
}
