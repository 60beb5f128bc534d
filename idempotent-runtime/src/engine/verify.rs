//! `on_crash = verify`: after a crash, the next caller verifies with the outside world before
//! anything else.
//!
//! It verifies under a claim of its own, whose lease is renewed meanwhile. The verdict is the
//! result, or lets the body run under the same claim, or leaves the record in doubt until it may be
//! verified again.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use super::admission::{Admission, admit, in_doubt};
use super::call::Call;
use super::finish;
use super::owner::Owner;
use super::run::{Run, detach};
use crate::context::Context;
use crate::error::Error;
use crate::outcome::{
    Answer, CallError, Codec, Ending, ErrorPolicy, Outcome, StoredValue, Upgrade,
};
use crate::policy::Verdict;
use crate::store::{Reason, Record};
use crate::watch::engine_waits;

/// The default delay before a call verifies: long enough for a request to arrive that was in flight
/// when its sender died.
pub(super) const SETTLE: Duration = Duration::from_secs(1);
/// The delay after a verification without an answer. It doubles with every attempt: the record does
/// not count verifications separately.
const FIRST_REST: Duration = Duration::from_secs(5);
const LONGEST_REST: Duration = Duration::from_secs(600);

/// Returns the time until the verification of attempt number `attempts` may be repeated. The second
/// attempt verifies first.
fn rest(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(2).min(16);
    FIRST_REST.saturating_mul(1 << doublings).min(LONGEST_REST)
}

/// The verification callback of a call, set by [`Call::on_crash_verify`].
#[derive(Clone, Copy, Debug)]
pub struct Verify<V>(pub(crate) V);

/// Marker: the call has no verification callback.
#[derive(Clone, Copy, Debug)]
pub struct NoVerify;

/// The result of the verification callback of a call that returns `R`.
pub type Asked<R> = Result<Verdict<<R as Outcome>::Value>, <R as Outcome>::Failure>;

/// The result of [`verify`].
#[expect(
    missing_debug_implementations,
    reason = "a result of any type is in it, and the expansion alone sees it"
)]
pub enum Verified<R, P> {
    /// The result that the call returns.
    Answered(R),
    /// The body must run.
    Mine(Cleared<R, P>),
}

/// A call whose body may run.
#[expect(missing_debug_implementations, reason = "the expansion alone sees it")]
#[must_use = "dropped, it gives its claim back"]
pub struct Cleared<R, P> {
    admission: Admission,
    codec: Codec<R, P>,
}

/// The future of a verification callback of a function that returns `R`.
#[diagnostic::on_unimplemented(
    message = "the verification of a function that returns `{R}` cannot return `{Self}`",
    label = "not a future of a `Verdict`, in a `Result` with the error of the function",
    note = "write an async closure or a path to an `async fn` that returns `Result<idempotency::Verdict<T>, E>` where the function returns `Result<T, E>`"
)]
pub trait Verification<R> {
    /// Waits for the answer.
    #[doc(hidden)]
    fn answer(self) -> impl Future<Output = Asked<R>>
    where
        R: Outcome;
}

#[diagnostic::do_not_recommend]
impl<R: Outcome, Q: Future<Output = Asked<R>>> Verification<R> for Q {
    fn answer(self) -> impl Future<Output = Asked<R>> {
        self
    }
}

/// Acquires the claim of `call`, and calls `question` if an earlier attempt may have left an
/// effect: what the attribute with `on_crash = verify(question)` does before the body.
/// [`Call::on_crash_verify`] does it without the attribute.
pub fn verify<R, P, V, Q>(
    call: Call,
    codec: Codec<R, P>,
    question: V,
) -> impl Future<Output = Verified<R, P>>
where
    R: Outcome,
    V: FnOnce(Context) -> Q,
    Q: Verification<R>,
{
    // Created out here: an `async fn` would reserve space for the call too.
    let admission = Box::pin(admit(call.request.verifying()));
    async move {
        match engine_waits(admission).await {
            Admission::Answer(answer) => Verified::Answered(codec.reader.answer(answer)),
            // Boxed: it is rarely needed, and every future of a call would reserve space for it.
            Admission::Run(owner) if owner.must_ask() => {
                Box::pin(ask(owner, codec, question)).await
            }
            admission => Verified::Mine(Cleared { admission, codec }),
        }
    }
}

/// Calls `question` under the claim taken over from an earlier attempt.
pub(crate) async fn ask<R, P, V, Q>(
    mut owner: Box<Owner>,
    codec: Codec<R, P>,
    question: V,
) -> Verified<R, P>
where
    R: Outcome,
    V: FnOnce(Context) -> Q,
    Q: Verification<R>,
{
    owner.call.engine.clock.sleep(owner.call.settle).await;
    let (task_state, context) = match owner.begin_question() {
        Ok(asking) => asking,
        Err(error) => return Verified::Answered(codec.reader.answer(Answer::Refused(error))),
    };
    // If this is dropped from here on, also by a panic, the record is put in doubt until it may be
    // verified again.
    let answer = task_state.clone().wrap(async move { question(context).answer().await }).await;
    let (result, ending) = match answer {
        Ok(Verdict::NotExecuted) => {
            owner.note_not_executed();
            return Verified::Mine(Cleared { admission: Admission::Run(owner), codec });
        }
        Ok(Verdict::Completed(value)) => {
            task_state.enter(|| codec.writer.ending(R::completed(value)))
        }
        Ok(Verdict::Unknown) => {
            (codec.reader.answer(Answer::Refused(owner.without_answer())), owner.ask_again_later())
        }
        Err(error) => (R::failed(error), owner.ask_again_later()),
    };
    Verified::Answered(match engine_waits(owner.finish(ending)).await {
        finish::CallerGets::Own => result,
        finish::CallerGets::Instead(answer) => codec.reader.answer(answer),
    })
}

impl<R, P> Cleared<R, P> {
    /// Runs the body. Boxed: the caller's future already has space for what the body captures,
    /// because the verification callback borrows it from there.
    pub fn run<F, B>(self, body: B) -> Pin<Box<Run<R, B, F, P>>>
    where
        B: FnOnce() -> F,
        F: Future<Output = R>,
    {
        Box::pin(Run::admitted(self.admission, self.codec, body))
    }

    /// Runs the body in a task of its own.
    pub fn run_detached<F, B>(self, body: B) -> impl Future<Output = R> + use<R, P, F, B>
    where
        R: Send + 'static,
        P: Send + 'static,
        B: FnOnce() -> F + Send + 'static,
        F: Future<Output = R> + Send + 'static,
    {
        detach(self.admission, self.codec, body)
    }
}

impl Owner {
    /// Returns true if an earlier attempt may have left an effect that the outside world knows
    /// about.
    pub(crate) fn must_ask(&self) -> bool {
        self.grant.taken_over.is_some()
            && self.grant.record.policy == crate::store::CrashPolicy::Verify
    }

    /// The error for the record as it is left without an answer.
    fn without_answer(&self) -> Error {
        let record = &self.grant.record;
        let lease_until = record.read_at + self.rest();
        let left = Record { reason: Some(Reason::Unverified), lease_until, ..record.clone() };
        in_doubt(&self.call, &left)
    }

    fn ask_again_later(&self) -> Ending {
        Ending::Unknown { reason: Reason::Unverified, ask_again_after: self.rest() }
    }

    /// The delay after a verification without an answer.
    pub(super) fn rest(&self) -> Duration {
        rest(self.grant.record.attempts)
    }
}

impl<P, V> Call<P, Verify<V>> {
    /// Runs the call as [`Call::run`] does. After a crash it verifies first, and runs `body` if the
    /// verdict is [`Verdict::NotExecuted`].
    ///
    /// # Errors
    /// Those of [`Call::run`], and the callback's own.
    pub async fn run<T, E, F, B, Q>(self, body: B) -> Result<T, E>
    where
        B: FnOnce() -> F,
        F: Future<Output = Result<T, E>>,
        V: FnOnce(Context) -> Q,
        Q: Future<Output = Result<Verdict<T>, E>>,
        T: StoredValue,
        E: CallError,
        P: ErrorPolicy<E>,
    {
        let (call, policy, Verify(question)) = self.parts();
        match verify(call, Result::<T, E>::codec(policy), question).await {
            Verified::Answered(result) => result,
            Verified::Mine(claim) => claim.run(body).await,
        }
    }

    /// Like [`run`](Self::run), but reads results of another schema version with `upgrade`, as in
    /// [`Call::run_with_upgrade`].
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub async fn run_with_upgrade<T, E, F, B, Q>(self, upgrade: Upgrade<T>, body: B) -> Result<T, E>
    where
        B: FnOnce() -> F,
        F: Future<Output = Result<T, E>>,
        V: FnOnce(Context) -> Q,
        Q: Future<Output = Result<Verdict<T>, E>>,
        T: StoredValue + 'static,
        E: CallError,
        P: ErrorPolicy<E>,
    {
        let (call, policy, Verify(question)) = self.parts();
        match verify(call, Result::<T, E>::codec(policy).upgrade(upgrade), question).await {
            Verified::Answered(result) => result,
            Verified::Mine(claim) => claim.run(body).await,
        }
    }

    /// Like [`run_with_upgrade`](Self::run_with_upgrade), but also reads stored errors of another
    /// schema version, with `upgrade_error`, as in [`Call::run_with_upgrades`].
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub async fn run_with_upgrades<T, E, F, B, Q>(
        self,
        upgrade: Upgrade<T>,
        upgrade_error: Upgrade<E>,
        body: B,
    ) -> Result<T, E>
    where
        B: FnOnce() -> F,
        F: Future<Output = Result<T, E>>,
        V: FnOnce(Context) -> Q,
        Q: Future<Output = Result<Verdict<T>, E>>,
        T: StoredValue + 'static,
        E: CallError + 'static,
        P: ErrorPolicy<E>,
    {
        let (call, policy, Verify(question)) = self.parts();
        let codec = Result::<T, E>::codec(policy).upgrade(upgrade).upgrade_error(upgrade_error);
        match verify(call, codec, question).await {
            Verified::Answered(result) => result,
            Verified::Mine(claim) => claim.run(body).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LONGEST_REST, rest};

    #[test]
    fn rests_grow_with_the_attempts_up_to_a_bound() {
        let seconds: Vec<u64> = (1..=11).map(|attempts| rest(attempts).as_secs()).collect();
        assert_eq!(seconds, [5, 5, 10, 20, 40, 80, 160, 320, 600, 600, 600]);
        assert_eq!(rest(u32::MAX), LONGEST_REST);
    }
}
