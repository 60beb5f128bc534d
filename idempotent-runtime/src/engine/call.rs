//! One call of an operation: what the user says about it.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::instance::Instance;
use super::operations::Site;
use super::run::{Run, run};
use super::settings::{check_conflict, check_pause, check_time};
use super::verify::{SETTLE, Unasked, Verify};
use super::window::Windowed;
use super::{Idempotency, Inner, scope};
use crate::error::{Error, ErrorKind};
use crate::fingerprint::Fingerprint;
use crate::key::{IntoKey, Key, KeyHash, hash_key};
use crate::outcome::{CallError, ErrorPolicy, Outcome, StoredValue, Upgrade};
use crate::policy::{OnConflict, OnCrash, Unstored};
use crate::store::CrashPolicy;

/// One call of an operation, made by [`Idempotency::call`]. [`run`](Self::run) makes it.
///
/// ```
/// # use std::time::Duration;
/// # use idempotent_runtime::{Error, Idempotency, OnCrash, store::MemoryStore};
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
pub struct Call<P = Unstored, V = Unasked> {
    pub(crate) request: Request,
    policy: P,
    question: V,
}

/// What a call asks for, before anything is checked.
#[derive(Debug)]
pub(crate) struct Request {
    engine: Result<Idempotency, Error>,
    operation: Operation,
    key: Key,
    scope: Option<Key>,
    fingerprint: Result<Option<Fingerprint>, Error>,
    former_fingerprints: Result<Vec<Option<Fingerprint>>, Error>,
    ttl: Option<Duration>,
    lease: Option<Duration>,
    on_conflict: Option<Conflict>,
    policy: CrashPolicy,
    settle: Duration,
    after_expiry: Option<Duration>,
    version: u32,
    count_attempts: bool,
}

#[derive(Debug)]
enum Operation {
    Named(Arc<str>),
    /// With the instance of the function, where the user has not given the name.
    Site(&'static Site, Option<fn() -> Instance>),
}

#[derive(Clone, Copy, Debug)]
enum Conflict {
    /// Wait for as long as the engine says.
    Wait,
    As(OnConflict),
}

impl Call {
    pub(crate) fn named(engine: &Idempotency, operation: &str, key: Key) -> Self {
        Self::new(Ok(engine.clone()), Operation::Named(operation.into()), key)
    }

    pub(crate) fn at(site: &'static Site, engine: Option<&Idempotency>, key: Key) -> Self {
        let engine = engine.map_or_else(scope::current_engine, |engine| Ok(engine.clone()));
        Self::new(engine, Operation::Site(site, None), key)
    }

    fn new(engine: Result<Idempotency, Error>, operation: Operation, key: Key) -> Self {
        let request = Request {
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
        };
        Self { request, policy: Unstored::Release, question: Unasked }
    }

    /// Of a function to which the user has given no name: its instances do not share the operation.
    pub(crate) fn of_instance<W>(mut self) -> Self {
        if let Operation::Site(_, instance) = &mut self.request.operation {
            *instance = Some(Instance::of::<W>);
        }
        self
    }
}

impl<P, V> Call<P, V> {
    /// Decides what becomes of an `Err` of the body: [`OnError`](crate::OnError), [`Unstored`], or a function over
    /// the error that returns one of them. The default is [`Unstored::Release`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotent_runtime::{Error, Idempotency, Unstored, store::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// # #[derive(Debug)] enum PayError { ProviderTimeout, Idempotency(Error) }
    /// # impl From<Error> for PayError { fn from(error: Error) -> Self { Self::Idempotency(error) } }
    /// let result: Result<u32, PayError> = engine
    ///     .call("payments.charge", 7)
    ///     .ttl(Duration::from_secs(60))
    ///     .on_error(|error: &PayError| match error {
    ///         PayError::ProviderTimeout => Unstored::Hold,
    ///         _ => Unstored::Release,
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

    /// How long the result is kept, counted from the end of the body; required. From a millisecond up to the
    /// engine's ceiling of 400 days, else the call fails with [`Config`](ErrorKind::Config). It is counted in whole
    /// milliseconds of the store's clock, a part of one as one.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.request.ttl = Some(ttl);
        self
    }

    /// The tenant part of the key. Two scopes never see each other's records.
    pub fn scope<K: IntoKey>(mut self, scope: K) -> Self {
        self.request.scope = Some(Key::of(&scope));
        self
    }

    /// What a retry must repeat: the same key with another fingerprint fails with [`Mismatch`](ErrorKind::Mismatch), and so
    /// does a call with one where the record has none, or the other way round.
    ///
    /// What counts is what `value` serializes to, as in [`key::digest`](crate::key::digest): equal values with unequal
    /// text are two fingerprints. A `Decimal` of `1.0` is not one of `1.00`, a time is another one in another zone, a
    /// `HashSet` has another order in each process, a sum of floats depends on its order. Take what is one text for one
    /// value: cents, UTC, a `BTreeSet`.
    ///
    /// Whoever changes `value` in a later release says with [`former_fingerprint`](Self::former_fingerprint) what it was.
    pub fn fingerprint<T: Serialize + ?Sized>(mut self, value: &T) -> Self {
        self.request.fingerprint = Fingerprint::of(value).map(Some);
        self
    }

    /// Says what the [`fingerprint`](Self::fingerprint) of this call was in an earlier release: a record that carries it
    /// is this call's too. Needed for as long as such records live. Can be said more than once.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotent_runtime::{Error, Idempotency, store::MemoryStore};
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
    pub fn former_fingerprint<T: Serialize + ?Sized>(mut self, value: &T) -> Self {
        let former = Fingerprint::of(value).map(Some);
        self.request.add_former(former);
        self
    }

    /// Says that this call had no [`fingerprint`](Self::fingerprint) in an earlier release: a record without one is this
    /// call's too, whatever it repeats. Such a record was made by whoever came first with the key, so say it only for as
    /// long as records of that release live.
    pub fn formerly_without_fingerprint(mut self) -> Self {
        self.request.add_former(Ok(None));
        self
    }

    /// How long the claim lives without renewal, from a millisecond to 100 years, and no longer than the `ttl`. The default
    /// is the engine's, 15 seconds, whatever the `ttl`.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.request.lease = Some(lease);
        self
    }

    /// What to do when another caller is running the call. The default is the engine's: wait 30 seconds. A wait goes from
    /// a millisecond to 100 years, else the call fails with [`Config`](ErrorKind::Config); it is one for the whole call, also
    /// over several [windows](crate::key::window), and after the body, where a call that was overtaken waits for the result
    /// of the other one. The time that the body takes does not count.
    pub fn on_conflict(mut self, on_conflict: OnConflict) -> Self {
        self.request.on_conflict = Some(Conflict::As(on_conflict));
        self
    }

    /// Waits for another caller that is running the call, for as long as the engine says.
    pub fn wait_on_conflict(mut self) -> Self {
        self.request.on_conflict = Some(Conflict::Wait);
        self
    }

    /// What the next caller does when this one is gone in the middle of the body. The default is [`OnCrash::Hold`].
    pub fn on_crash(mut self, on_crash: OnCrash) -> Call<P> {
        self.request.policy = match on_crash {
            OnCrash::Hold => CrashPolicy::Hold,
            OnCrash::Retry => CrashPolicy::Retry,
            OnCrash::Resume => CrashPolicy::Resume,
        };
        Call { request: self.request, policy: self.policy, question: Unasked }
    }

    /// Lets the next caller ask the outside world when this one is gone in the middle of the body: the effect of a call
    /// may be known to a provider, a mailbox or a table.
    ///
    /// The next caller takes the claim over, waits for the [`settle`](Self::settle) delay and calls `question`, whose
    /// [`Verdict`](crate::Verdict) is the result, lets the body run, or leaves the record in doubt. Callers then get
    /// [`InDoubt`](ErrorKind::InDoubt) with a [`retry_after`](Error::retry_after), after which the next call asks again.
    /// An `Err` of the question is returned, and leaves the record in doubt just so; as do its panic and its drop. The
    /// question is asked by one caller at a time, and its lease is renewed meanwhile.
    ///
    /// **Nobody can tell a dead owner from a slow one.** "It did not happen" is true only at the moment of the answer: an
    /// owner that was paused may still make the effect afterwards. So this is safe only where the outside world
    /// enforces the key that both attempts sent ([`Context::derive_key`](crate::Context::derive_key)), or the old
    /// attempt is known to be dead. The settle delay covers requests that were on their way.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotent_runtime::{Context, Error, Idempotency, Verdict, store::MemoryStore};
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

    /// How long to wait between the takeover and the question of [`on_crash_verify`](Self::on_crash_verify), so that a
    /// request arrives that was on its way when its sender died. The default is one second; choose a time in which the
    /// outside world answers or gives up.
    pub fn settle(mut self, delay: Duration) -> Self {
        self.request.settle = delay;
        self
    }

    /// How long after its record has expired a late call is told [`Expired`](ErrorKind::Expired) instead of running the
    /// body again: a small tombstone stays in the record's place. From a millisecond up to the engine's ceiling of 400
    /// days, else the call fails with [`Config`](ErrorKind::Config). Without it, nothing stays.
    pub fn after_expiry(mut self, refuse_for: Duration) -> Self {
        self.request.after_expiry = Some(refuse_for);
        self
    }

    /// The schema version of the result, and of a stored error. What another version has stored is
    /// [`Decode`](ErrorKind::Decode), unless [`run_with_upgrades`](Self::run_with_upgrades) reads it. The default is zero.
    pub fn version(mut self, version: u32) -> Self {
        self.request.version = version;
        self
    }

    /// Keeps counting attempts when a claim is released, so that [`Context::attempt`](crate::Context::attempt) counts
    /// failed ones too. Not in a transaction ([`run_in`](Self::run_in)): there the count is undone with what else the
    /// failed attempt has written.
    pub fn count_attempts(mut self) -> Self {
        self.request.count_attempts = true;
        self
    }

    /// As [`scope`](Self::scope), of a part that is encoded already; none is no scope.
    pub(crate) fn in_scope(mut self, scope: Option<Key>) -> Self {
        self.request.scope = scope;
        self
    }

    /// As [`fingerprint`](Self::fingerprint), computed elsewhere.
    #[cfg(feature = "http")]
    pub(crate) fn with_fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.request.fingerprint = Ok(Some(fingerprint));
        self
    }

    /// As [`former_fingerprint`](Self::former_fingerprint), computed elsewhere.
    #[cfg(feature = "http")]
    pub(crate) fn with_former_fingerprints(mut self, former: Vec<Fingerprint>) -> Self {
        for former in former {
            self.request.add_former(Ok(Some(former)));
        }
        self
    }

    /// The request, what becomes of errors, which the codec takes, and what is asked.
    pub(super) fn parts(self) -> (Call, P, V) {
        let call = Call { request: self.request, policy: Unstored::Release, question: Unasked };
        (call, self.policy, self.question)
    }
}

impl<P> Call<P> {
    /// Makes the call: replays the stored result if there is one, else runs `body` under the claim and stores what it
    /// returns. Takes `|| async { … }` and `async || { … }`.
    ///
    /// The caller that runs the body gets what all others get: its result is stored as JSON and read back. A result that
    /// JSON would change (`NaN`, `Some(None)`), or that does not read back, is [`Encode`](ErrorKind::Encode) for everybody.
    ///
    /// Nothing happens until the future is polled. If it is dropped while the body runs, the outcome is unknown and
    /// the next call decides by [`on_crash`](Self::on_crash).
    ///
    /// # Errors
    /// The body's own, and [`Error`] converted into `E`: every [`ErrorKind`] can occur.
    pub fn run<T, E, F, B>(self, body: B) -> Run<Result<T, E>, B, F, P>
    where
        B: FnOnce() -> F,
        F: Future<Output = Result<T, E>>,
        T: StoredValue,
        E: CallError,
        P: ErrorPolicy<E>,
    {
        let (call, policy, Unasked) = self.parts();
        run(call, Result::<T, E>::codec(policy), body)
    }

    /// As [`run`](Self::run); results of another schema [`version`](Self::version) are read by `upgrade`, which gets
    /// their version and bytes, and answers `None` for those that it cannot read.
    pub fn run_with_upgrade<T, E, F, B>(self, upgrade: Upgrade<T>, body: B) -> Run<Result<T, E>, B, F, P>
    where
        B: FnOnce() -> F,
        F: Future<Output = Result<T, E>>,
        T: StoredValue + 'static,
        E: CallError,
        P: ErrorPolicy<E>,
    {
        let (call, policy, Unasked) = self.parts();
        run(call, Result::<T, E>::codec(policy).upgrade(upgrade), body)
    }

    /// As [`run_with_upgrade`](Self::run_with_upgrade); stored errors of another schema version are read by
    /// `upgrade_error` in the same way.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotent_runtime::{Error, Idempotency, OnError, store::MemoryStore};
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
        let (call, policy, Unasked) = self.parts();
        run(call, Result::<T, E>::codec(policy).upgrade(upgrade).upgrade_error(upgrade_error), body)
    }
}

const MILLI: Duration = Duration::from_millis(1);

/// A part of a millisecond counts as one.
fn whole_millis(time: Duration) -> Duration {
    let part = time.subsec_nanos() % 1_000_000;
    if part == 0 { time } else { time + Duration::from_nanos(u64::from(1_000_000 - part)) }
}

/// A call whose words were checked.
#[derive(Clone)]
pub(crate) struct Checked {
    pub(crate) engine: Arc<Inner>,
    pub(crate) operation: Arc<str>,
    pub(crate) key: KeyHash,
    pub(super) windowed: Option<Windowed>,
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
    /// As a call that asks after a crash.
    pub(super) fn verifying(mut self) -> Self {
        self.policy = CrashPolicy::Verify;
        self
    }

    fn add_former(&mut self, former: Result<Option<Fingerprint>, Error>) {
        match (&mut self.former_fingerprints, former) {
            (Ok(all), Ok(former)) => all.push(former),
            (all, Err(error)) => *all = Err(error),
            (Err(_), Ok(_)) => {}
        }
    }

    /// The schema version that the caller reads.
    pub(super) fn version(&self) -> u32 {
        self.version
    }

    pub(crate) fn check(self) -> Result<Checked, Error> {
        let named = |error: Error, operation: &Arc<str>| error.of_operation(operation);
        let operation: Arc<str> = match &self.operation {
            Operation::Named(name) => name.clone(),
            Operation::Site(site, instance) => match &self.engine {
                Ok(engine) => engine.inner.operations.name_of(site, instance.map(|of| of()))?,
                Err(_) => site.name().into(),
            },
        };
        let engine = self.engine.map_err(|error| named(error, &operation))?.inner;
        let settings = &engine.settings;
        let checked = || -> Result<_, Error> {
            engine.validity()?;
            if operation.is_empty() {
                return Err(Error::config("the operation has no name"));
            }
            let ttl =
                self.ttl.ok_or_else(|| Error::config("the call has no `ttl`; say how long its result is kept"))?;
            if ttl < MILLI || ttl > settings.max_ttl {
                return Err(Error::config(format!("`ttl` is {ttl:?}; it goes from 1ms to {:?}", settings.max_ttl)));
            }
            let lease = self.lease.unwrap_or(settings.lease);
            check_time("lease", lease)?;
            check_pause("settle", self.settle)?;
            if let Some(Conflict::As(on_conflict)) = self.on_conflict {
                check_conflict(on_conflict)?;
            }
            let after_expiry = self.after_expiry.unwrap_or_default();
            let refusable = MILLI..=settings.max_ttl;
            if self.after_expiry.is_some_and(|refused| !refusable.contains(&refused)) {
                let ceiling = settings.max_ttl;
                return Err(Error::config(format!(
                    "`after_expiry` is {after_expiry:?}; it goes from 1ms to {ceiling:?}"
                )));
            }
            if self.lease.is_some_and(|lease| lease > ttl) {
                return Err(Error::config(format!("`ttl` ({ttl:?}) is shorter than `lease` ({lease:?})")));
            }
            let scope = self.scope.as_ref().map_or(Ok(&[][..]), |scope| scope.as_scope(settings.max_key_size))?;
            let number = self.key.window().map_or(0, |_| self.key.window_number(engine.clock.now()));
            let canonical = self.key.in_window(number, settings.max_key_size)?;
            let key = hash_key(&settings.namespace, scope, &operation, &canonical);
            let windowed = match self.key.window() {
                Some(length) if length > ttl => {
                    let detail = format!("`ttl` ({ttl:?}) is shorter than the window of the key ({length:?})");
                    return Err(Error::config(detail));
                }
                Some(_) => Some(Windowed { scope: scope.to_vec(), key: self.key.clone() }),
                None => None,
            };
            // Expiry counts from the beginning of the millisecond in which the result is stored. A repetition within the
            // length of a window is promised to the last part of one.
            let edge = if windowed.is_some() { MILLI } else { Duration::ZERO };
            let ttl = whole_millis(ttl) + edge;
            Ok((ttl, whole_millis(after_expiry), lease, key, windowed, self.fingerprint?, self.former_fingerprints?))
        };
        let (ttl, after_expiry, lease, key, windowed, fingerprint, former_fingerprints) =
            checked().map_err(|error| named(error, &operation))?;
        let on_conflict = match self.on_conflict {
            None => settings.on_conflict,
            Some(Conflict::Wait) => OnConflict::Wait(settings.wait()),
            Some(Conflict::As(on_conflict)) => on_conflict,
        };
        let (policy, version, count_attempts) = (self.policy, self.version, self.count_attempts);
        Ok(Checked {
            engine,
            operation,
            key,
            windowed,
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

impl Checked {
    pub(crate) fn refused(&self, kind: ErrorKind) -> Error {
        Error::new(kind).of_record(Some(&self.operation), &self.key)
    }

    /// Whether a record with this fingerprint is one of this very request, made by this release or by one before it.
    pub(crate) fn accepts(&self, recorded: Option<Fingerprint>) -> bool {
        !Fingerprint::contradicts(recorded, self.fingerprint) || self.former_fingerprints.contains(&recorded)
    }

    /// How long an unfinished record of this call is kept.
    pub(crate) fn linger(&self) -> Duration {
        self.engine.settings.linger(self.ttl)
    }

    /// How long this call waits for another caller; `None` if it refuses to.
    pub(crate) fn patience(&self) -> Option<Duration> {
        match self.on_conflict {
            OnConflict::Wait(patience) => Some(patience),
            OnConflict::Reject => None,
        }
    }
}
