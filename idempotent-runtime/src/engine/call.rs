//! One call of an operation, with the user's settings for it.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::instance::Instance;
use super::operations::Site;
use super::record::RecordHandle;
use super::request::{Conflict, Operation, Request};
use super::run::{Run, run};
use super::verify::{NoVerify, Verify};
use super::{Idempotency, task_state};
use crate::error::Error;
use crate::key::{Fingerprint, FingerprintError};
use crate::key::{IntoKey, Key};
use crate::outcome::{CallError, ErrorPolicy, Outcome, StoredValue, Upgrade};
use crate::policy::{ErrorAction, OnConflict, OnCrash};
use crate::store::CrashPolicy;

/// One call of an operation, created by [`Idempotency::call`]. Call [`run`](Self::run) to execute
/// it.
///
/// ```
/// # use std::time::Duration;
/// # use idempotency::{Error, Idempotency, OnCrash, store::MemoryStore};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let engine = Idempotency::new(MemoryStore::new());
/// let receipt: Result<String, Error> = engine
///     .call("payments.charge", ("shop-1", 4711))
///     .ttl(Duration::from_secs(86_400))
///     .fingerprint(&("EUR", 49_99))
///     .on_crash(OnCrash::Retry)
///     .run(|| async { Ok("receipt".to_owned()) })
///     .await;
/// assert_eq!(receipt?, "receipt");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a call does nothing until it runs"]
pub struct Call<P = ErrorAction, V = NoVerify> {
    pub(crate) request: Request,
    policy: P,
    question: V,
}

impl Call {
    pub(crate) fn named(engine: &Idempotency, operation: Arc<str>, key: Key) -> Self {
        Self::new(Ok(engine.clone()), Operation::Named(operation), key)
    }

    pub(crate) fn at(site: &'static Site, engine: Option<&Idempotency>, key: Key) -> Self {
        let engine = engine.map_or_else(task_state::current_engine, |engine| Ok(engine.clone()));
        Self::new(engine, Operation::Site(site, None), key)
    }

    fn new(engine: Result<Idempotency, Error>, operation: Operation, key: Key) -> Self {
        let request = Request::new(engine, operation, key);
        Self { request, policy: ErrorAction::Release, question: NoVerify }
    }

    /// Marks the call as one of a function that the user has not named: its instances do not share
    /// the operation.
    pub(crate) fn of_instance<W>(mut self) -> Self {
        if let Operation::Site(_, instance) = &mut self.request.operation {
            *instance = Some(Instance::of::<W>);
        }
        self
    }
}

impl<P, V> Call<P, V> {
    /// Decides what happens to an `Err` of the body: [`OnError`](crate::OnError), [`ErrorAction`],
    /// or a function over the error that returns one of them. The default is
    /// [`ErrorAction::Release`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Error, Idempotency, ErrorAction, store::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// # #[derive(Debug)] enum PayError { ProviderTimeout, Idempotency(Error) }
    /// # impl From<Error> for PayError { fn from(error: Error) -> Self { Self::Idempotency(error) } }
    /// let result: Result<u32, PayError> = engine
    ///     .call("payments.charge", 7)
    ///     .ttl(Duration::from_secs(60))
    ///     .on_error(|error: &PayError| match error {
    ///         PayError::ProviderTimeout => ErrorAction::Hold,
    ///         _ => ErrorAction::Release,
    ///     })
    ///     .run(|| async { Err(PayError::ProviderTimeout) })
    ///     .await;
    /// # assert!(result.is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_error<D>(self, policy: D) -> Call<D, V> {
        Call { request: self.request, policy, question: self.question }
    }

    /// Sets the retention of the result, counted from when it is stored; required. It ranges from
    /// a millisecond to the engine's ceiling of 400 days, otherwise the call fails with
    /// [`Config`](crate::ErrorKind::Config). It is counted in whole milliseconds of the store's
    /// clock, rounded up.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.request.ttl = Some(ttl);
        self
    }

    /// Sets the tenant part of the key. Two scopes never see each other's records.
    pub fn scope<K: IntoKey>(mut self, scope: K) -> Self {
        self.request.scope = Some(Key::of(&scope));
        self
    }

    /// Sets the fingerprint, which a retry must repeat. The same key with another fingerprint fails
    /// with [`Mismatch`](crate::ErrorKind::Mismatch), and so does a call with a fingerprint where
    /// the record has none, or the other way round.
    ///
    /// What counts is the serialized form of `value`, as in [`key::digest`](crate::key::digest):
    /// equal values with different text have different fingerprints. A `Decimal` of `1.0` differs
    /// from `1.00`, a time differs from the same time in another zone, a `HashSet` has another
    /// order in each process, a sum of floats depends on its order, and a `serde_json::Value` made
    /// of an `f32` depends on whether a crate of the build enables `arbitrary_precision`. Use a form
    /// with one text per value: cents, UTC, a `BTreeSet`.
    ///
    /// If a later release changes `value`, declare its earlier form with
    /// [`former_fingerprint`](Self::former_fingerprint).
    pub fn fingerprint<T: Serialize + ?Sized>(self, value: &T) -> Self {
        self.with_computed_fingerprint(Fingerprint::of(value))
    }

    /// Declares what the [`fingerprint`](Self::fingerprint) of this call was in an earlier release:
    /// a record with that fingerprint also belongs to this call. Needed for as long as such records
    /// live. Can be used more than once.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Error, Idempotency, store::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let charge = || engine.call("payments.charge", 4711).ttl(Duration::from_secs(86_400));
    /// let receipt: Result<u32, Error> = charge().fingerprint(&100).run(|| async { Ok(1) }).await;
    ///
    /// // The release after it also compares the currency.
    /// let retry = charge().fingerprint(&(100, "EUR")).former_fingerprint(&100);
    /// assert_eq!(retry.run(|| async { Ok::<_, Error>(2) }).await?, receipt?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn former_fingerprint<T: Serialize + ?Sized>(self, value: &T) -> Self {
        self.with_computed_former_fingerprint(Fingerprint::of(value))
    }

    /// Declares that this call had no [`fingerprint`](Self::fingerprint) in an earlier release: a
    /// record without one also belongs to this call, whatever was requested then. Such a record was
    /// created by the first caller that used the key, so declare this only for as long as records
    /// of that release live.
    pub fn formerly_without_fingerprint(mut self) -> Self {
        self.request.add_former(Ok(None));
        self
    }

    /// Sets the time that the claim lives without renewal, from a millisecond to 100 years, and no
    /// longer than the `ttl`. The default is the engine's, 15 seconds, whatever the `ttl`.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.request.lease = Some(lease);
        self
    }

    /// Sets the behaviour when another caller is running the call. The default is the engine's:
    /// wait 30 seconds. The wait ranges from a millisecond to 100 years, otherwise the call fails
    /// with [`Config`](crate::ErrorKind::Config). There is one wait for the whole call: also across
    /// several [windows](crate::key::window), and after the body, where a call that was overtaken
    /// waits for the result of the other one. The time that the body takes does not count.
    pub fn on_conflict(mut self, on_conflict: OnConflict) -> Self {
        self.request.on_conflict = Some(Conflict::As(on_conflict));
        self
    }

    /// Waits for another caller that is running the call, for as long as the engine's setting
    /// allows.
    pub fn wait_on_conflict(mut self) -> Self {
        self.request.on_conflict = Some(Conflict::Wait);
        self
    }

    /// Sets the behaviour of the next caller if this one disappears in the middle of the body. The
    /// default is [`OnCrash::Hold`].
    pub fn on_crash(mut self, on_crash: OnCrash) -> Call<P> {
        self.request.policy = match on_crash {
            OnCrash::Hold => CrashPolicy::Hold,
            OnCrash::Retry => CrashPolicy::Retry,
            OnCrash::Resume => CrashPolicy::Resume,
        };
        Call { request: self.request, policy: self.policy, question: NoVerify }
    }

    /// Lets the next caller verify with the outside world if this one disappears in the middle of
    /// the body: the effect of a call may be known to a provider, a mailbox or a table.
    ///
    /// The next caller takes the claim over, waits for the [`settle`](Self::settle) delay and calls
    /// `question`. Its [`Verdict`](crate::Verdict) is the result, lets the body run, or leaves the
    /// record in doubt. In the last case callers get [`InDoubt`](crate::ErrorKind::InDoubt) with a
    /// [`retry_after`](Error::retry_after), after which the next call verifies again. An `Err` of
    /// the callback is returned and also leaves the record in doubt, and so do its panic and its
    /// drop. Only one caller verifies at a time, and its lease is renewed meanwhile.
    ///
    /// **A dead owner cannot be distinguished from a slow one.** "It did not happen" is true only
    /// at the moment of the answer: an owner that was paused may still cause the effect afterwards.
    /// So this is safe only where the outside world enforces the key that both attempts sent
    /// ([`Context::derive_key`](crate::Context::derive_key)), or where the old attempt is known to
    /// be dead. The settle delay covers requests that were in flight.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Context, Error, Idempotency, Verdict, store::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// # struct Provider;
    /// # impl Provider {
    /// #     async fn find(&self, _: &str) -> Result<Option<String>, Error> { Ok(None) }
    /// #     async fn charge(&self, _: &str) -> Result<String, Error> { Ok("receipt".to_owned()) }
    /// # }
    /// # let (engine, provider) = (Idempotency::new(MemoryStore::new()), Provider);
    /// let receipt = engine
    ///     .call("payments.charge", 4711)
    ///     .ttl(Duration::from_secs(86_400))
    ///     .on_crash_verify(async |context: Context| match provider.find(&context.derive_key("charge")).await? {
    ///         Some(receipt) => Ok(Verdict::Completed(receipt)),
    ///         None => Ok(Verdict::NotExecuted),
    ///     })
    ///     .run(async || provider.charge(&Context::current().derive_key("charge")).await)
    ///     .await?;
    /// # assert_eq!(receipt, "receipt");
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_crash_verify<Q>(mut self, question: Q) -> Call<P, Verify<Q>> {
        self.request.policy = CrashPolicy::Verify;
        Call { request: self.request, policy: self.policy, question: Verify(question) }
    }

    /// Sets the delay between the takeover and the verification of
    /// [`on_crash_verify`](Self::on_crash_verify), so that a request arrives that was in flight
    /// when its sender died. The default is one second; choose a time within which the outside
    /// world answers or gives up.
    pub fn settle(mut self, delay: Duration) -> Self {
        self.request.settle = delay;
        self
    }

    /// Sets the time after the expiry of its record during which a late call fails with
    /// [`Expired`](crate::ErrorKind::Expired) instead of running the body again: a small tombstone
    /// stays in the record's place. It ranges from a millisecond to the engine's ceiling of 400
    /// days, otherwise the call fails with [`Config`](crate::ErrorKind::Config). Without it,
    /// nothing stays.
    pub fn after_expiry(mut self, refuse_for: Duration) -> Self {
        self.request.after_expiry = Some(refuse_for);
        self
    }

    /// Sets the schema version of the result, and of a stored error. A result of another version is
    /// [`Decode`](crate::ErrorKind::Decode), unless [`run_with_upgrades`](Self::run_with_upgrades)
    /// reads it. The default is zero.
    pub fn version(mut self, version: u32) -> Self {
        self.request.version = version;
        self
    }

    /// Keeps counting attempts when a claim is released, so that
    /// [`Context::attempt`](crate::Context::attempt) counts failed ones too. Not in a transaction
    /// ([`run_in`](Self::run_in)): there the count is undone along with everything else that the
    /// failed attempt has written.
    pub fn count_attempts(mut self) -> Self {
        self.request.count_attempts = true;
        self
    }

    /// Like [`scope`](Self::scope), for a part that is already encoded. `None` means no scope.
    pub(crate) fn in_scope(mut self, scope: Option<Key>) -> Self {
        self.request.scope = scope;
        self
    }

    /// Like [`fingerprint`](Self::fingerprint), computed elsewhere.
    pub(crate) fn with_fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.request.fingerprint = Ok(Some(fingerprint));
        self
    }

    /// Like [`former_fingerprint`](Self::former_fingerprint), computed elsewhere. `None` means that
    /// an earlier release had none.
    pub(crate) fn with_former_fingerprint(mut self, former: Option<Fingerprint>) -> Self {
        self.request.add_former(Ok(former));
        self
    }

    /// Like [`fingerprint`](Self::fingerprint), for the result of computing it elsewhere.
    pub(crate) fn with_computed_fingerprint(
        mut self,
        fingerprint: Result<Fingerprint, FingerprintError>,
    ) -> Self {
        self.request.fingerprint = fingerprint.map(Some).map_err(Error::from);
        self
    }

    /// Like [`former_fingerprint`](Self::former_fingerprint), for the result of computing it
    /// elsewhere.
    pub(crate) fn with_computed_former_fingerprint(
        mut self,
        former: Result<Fingerprint, FingerprintError>,
    ) -> Self {
        self.request.add_former(former.map(Some).map_err(Error::from));
        self
    }

    /// Returns a handle to the record of the call, which is named `operation`.
    pub(crate) fn record(&self, engine: &Idempotency, operation: &str) -> RecordHandle {
        RecordHandle::of_call(engine.inner.clone(), operation, self.request.key.clone())
            .in_scope(self.request.scope.clone())
    }

    /// Lets the next caller verify if this one disappears in the middle of the body. The code that
    /// runs the call has the callback.
    pub(crate) fn verifying(mut self) -> Self {
        self.request = self.request.verifying();
        self
    }

    /// Returns the same call, to be run again.
    #[cfg(feature = "__sql")]
    pub(crate) fn again(&self) -> Call {
        Call { request: self.request.clone(), policy: ErrorAction::Release, question: NoVerify }
    }

    /// Splits the call into the request, the error policy, which the codec takes, and the
    /// verification callback.
    pub(super) fn parts(self) -> (Call, P, V) {
        let call = Call { request: self.request, policy: ErrorAction::Release, question: NoVerify };
        (call, self.policy, self.question)
    }
}

impl<P> Call<P> {
    /// Runs the call: replays the stored result if there is one, otherwise runs `body` under the
    /// claim and stores what it returns. Accepts `|| async { … }` and `async || { … }`.
    ///
    /// The caller that runs the body gets what all others get: its result is stored as JSON and
    /// read back. A result that JSON would change (`NaN`, `Some(None)`), or that does not read
    /// back, is [`Encode`](crate::ErrorKind::Encode) for every caller.
    ///
    /// Nothing happens until the future is polled. If it is dropped while the body runs, the
    /// outcome is unknown and the next call decides by [`on_crash`](Self::on_crash).
    ///
    /// # Errors
    /// The body's own, and [`Error`] converted into `E`: every [`ErrorKind`](crate::ErrorKind) can
    /// occur.
    pub fn run<T, E, F, B>(self, body: B) -> Run<Result<T, E>, B, F, P>
    where
        B: FnOnce() -> F,
        F: Future<Output = Result<T, E>>,
        T: StoredValue,
        E: CallError,
        P: ErrorPolicy<E>,
    {
        let (call, policy, NoVerify) = self.parts();
        run(call, Result::<T, E>::codec(policy), body)
    }

    /// Like [`run`](Self::run), but reads results of another schema [`version`](Self::version) with
    /// `upgrade`. It gets their version and bytes, and returns `None` for those that it cannot
    /// read.
    pub fn run_with_upgrade<T, E, F, B>(
        self,
        upgrade: Upgrade<T>,
        body: B,
    ) -> Run<Result<T, E>, B, F, P>
    where
        B: FnOnce() -> F,
        F: Future<Output = Result<T, E>>,
        T: StoredValue + 'static,
        E: CallError,
        P: ErrorPolicy<E>,
    {
        let (call, policy, NoVerify) = self.parts();
        run(call, Result::<T, E>::codec(policy).upgrade(upgrade), body)
    }

    /// Like [`run_with_upgrade`](Self::run_with_upgrade), but also reads stored errors of another
    /// schema version, with `upgrade_error`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Error, Idempotency, OnError, store::MemoryStore};
    /// # use serde::{Deserialize, Serialize};
    /// #[derive(Debug, PartialEq, Serialize, Deserialize)]
    /// enum PayError {
    ///     Declined { code: u16 },
    ///     Refused(String),
    /// }
    /// # impl From<Error> for PayError { fn from(error: Error) -> Self { Self::Refused(error.to_string()) } }
    ///
    /// /// Version 0 stored the code alone.
    /// fn read_old_error(version: u32, stored: &[u8]) -> Option<PayError> {
    ///     let code = std::str::from_utf8(stored).ok()?.parse().ok()?;
    ///     (version == 0).then_some(PayError::Declined { code })
    /// }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # #[derive(Debug, Serialize, Deserialize)] struct Old(u16);
    /// # impl From<Error> for Old { fn from(_: Error) -> Self { Self(0) } }
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// # let call = || engine.call("payments.charge", 7).ttl(Duration::from_secs(60)).on_error(OnError::Store);
    /// # call().run(|| async { Err::<String, _>(Old(51)) }).await.unwrap_err();
    ///
    /// let call = call().version(1);
    /// let declined = call.run_with_upgrades(|_, _| None, read_old_error, || async { Ok("receipt".to_owned()) }).await;
    /// assert_eq!(declined, Err(PayError::Declined { code: 51 }));
    /// # }
    /// ```
    pub fn run_with_upgrades<T, E, F, B>(
        self,
        upgrade: Upgrade<T>,
        upgrade_error: Upgrade<E>,
        body: B,
    ) -> Run<Result<T, E>, B, F, P>
    where
        B: FnOnce() -> F,
        F: Future<Output = Result<T, E>>,
        T: StoredValue + 'static,
        E: CallError + 'static,
        P: ErrorPolicy<E>,
    {
        let (call, policy, NoVerify) = self.parts();
        run(call, Result::<T, E>::codec(policy).upgrade(upgrade).upgrade_error(upgrade_error), body)
    }
}
