//! The limits of an engine and their defaults.

use std::sync::Arc;
use std::time::Duration;

use super::duplicate::DuplicateHook;
use super::keeper::Spawn;
use super::origin::{LONGEST, TraceContext, check_instance, this_process};
use crate::clock::Clock;
use crate::error::Error;
use crate::events::Observer;
use crate::near_cache::NearCache;
use crate::policy::OnConflict;

const DAY: Duration = Duration::from_secs(86_400);
/// The largest `max_result_size`.
pub(crate) const RESULT_CEILING: usize = 8 * 1024 * 1024;
/// The largest `max_key_size`.
const KEY_CEILING: usize = 64 * 1024;
/// The largest `purge_batch`.
const BATCH_CEILING: usize = 100_000;
const SHORTEST: Duration = Duration::from_millis(1);
/// A hundred years. A longer time is meant as for ever, and causes an error in one of the stores,
/// where times are added.
const LONGEST_TIME: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Checks that a time set by the user is one that every store can count.
pub(crate) fn check_time(name: &str, time: Duration) -> Result<(), Error> {
    if (SHORTEST..=LONGEST_TIME).contains(&time) {
        return Ok(());
    }
    Err(Error::config(format!("`{name}` is {time:?}; it must be from {SHORTEST:?} to 100 years")))
}

/// Like [`check_time`], for a time that may be zero.
pub(crate) fn check_pause(name: &str, pause: Duration) -> Result<(), Error> {
    if pause.is_zero() { Ok(()) } else { check_time(name, pause) }
}

/// Checks the time that a caller waits. A caller that does not wait has none.
pub(crate) fn check_conflict(on_conflict: OnConflict) -> Result<(), Error> {
    match on_conflict {
        OnConflict::Wait(time) => check_time("on_conflict", time),
        OnConflict::Reject => Ok(()),
    }
}

fn check_size(name: &str, size: usize, largest: usize) -> Result<(), Error> {
    if (1..=largest).contains(&size) {
        return Ok(());
    }
    Err(Error::config(format!("`{name}` is {size}; it must be from 1 to {largest}")))
}

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) namespace: Arc<str>,
    /// The name of this process on the records of its claims.
    pub(super) instance: Arc<str>,
    pub(crate) lease: Duration,
    pub(crate) on_conflict: OnConflict,
    pub(crate) claim_timeout: Duration,
    pub(crate) commit_timeout: Duration,
    pub(crate) background_commit: Duration,
    pub(crate) max_run: Duration,
    pub(crate) max_key_size: usize,
    pub(crate) max_result_size: usize,
    pub(crate) max_ttl: Duration,
    pub(crate) in_doubt_retention: Duration,
    pub(crate) max_waiters: usize,
    pub(crate) background_purge: bool,
    pub(crate) purge_interval: Duration,
    pub(crate) purge_batch: usize,
    pub(crate) on_duplicate: Option<Arc<DuplicateHook>>,
    pub(super) observers: Vec<Arc<dyn Observer>>,
    /// In bytes; `None` if there is no near cache.
    #[cfg(feature = "near-cache")]
    pub(crate) near_cache: Option<u64>,
    #[cfg(feature = "near-cache")]
    pub(crate) near_cache_ttl: Duration,
    pub(super) trace_context: Option<Arc<dyn TraceContext>>,
    /// `None` runs it on a thread of its own.
    pub(super) background: Option<Arc<Spawn>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: "default".into(),
            instance: this_process(),
            lease: Duration::from_secs(15),
            on_conflict: OnConflict::Wait(Self::WAIT),
            claim_timeout: Duration::from_secs(5),
            commit_timeout: Duration::from_secs(10),
            background_commit: Duration::from_secs(600),
            max_run: Duration::from_secs(3600),
            max_key_size: 1024,
            max_result_size: 256 * 1024,
            max_ttl: 400 * DAY,
            in_doubt_retention: 30 * DAY,
            max_waiters: 10_000,
            background_purge: true,
            purge_interval: Duration::from_secs(60),
            purge_batch: 1_000,
            on_duplicate: None,
            observers: Vec::new(),
            #[cfg(feature = "near-cache")]
            near_cache: None,
            #[cfg(feature = "near-cache")]
            near_cache_ttl: Duration::from_secs(5),
            trace_context: None,
            background: None,
        }
    }
}

impl Settings {
    /// The time that a call waits if it was set to wait and no time was given.
    pub(crate) const WAIT: Duration = Duration::from_secs(30);

    pub(crate) fn validate(&self) -> Result<(), Error> {
        let allowed =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        if self.namespace.is_empty()
            || self.namespace.len() > LONGEST
            || !self.namespace.bytes().all(allowed)
        {
            return Err(Error::config("a namespace must be 1 to 64 characters of `a-z 0-9 . _ -`"));
        }
        check_instance(&self.instance)?;
        for (name, time) in [
            ("lease", self.lease),
            ("claim_timeout", self.claim_timeout),
            ("commit_timeout", self.commit_timeout),
            ("max_run", self.max_run),
            ("max_ttl", self.max_ttl),
            ("in_doubt_retention", self.in_doubt_retention),
            ("purge_interval", self.purge_interval),
            #[cfg(feature = "near-cache")]
            ("near_cache_ttl", self.near_cache_ttl),
        ] {
            check_time(name, time)?;
        }
        check_pause("background_commit", self.background_commit)?;
        check_conflict(self.on_conflict)?;
        check_size("max_key_size", self.max_key_size, KEY_CEILING)?;
        check_size("max_result_size", self.max_result_size, RESULT_CEILING)?;
        check_size("purge_batch", self.purge_batch, BATCH_CEILING)?;
        #[cfg(feature = "near-cache")]
        if self.near_cache == Some(0) {
            return Err(Error::config(
                "`near_cache` is 0; it must be at least one byte, or left out to have no near \
                 cache",
            ));
        }
        Ok(())
    }

    #[cfg(feature = "near-cache")]
    pub(super) fn near_cache(&self, clock: &Arc<dyn Clock>) -> Option<Arc<NearCache>> {
        Some(Arc::new(NearCache::new(self.near_cache?, self.near_cache_ttl, clock.clone())))
    }

    #[cfg(not(feature = "near-cache"))]
    #[expect(clippy::unused_self, reason = "without the feature there are no settings for it")]
    pub(super) fn near_cache(&self, _: &Arc<dyn Clock>) -> Option<Arc<NearCache>> {
        None
    }

    /// The time that a call waits if it was set to wait.
    pub(crate) fn wait(&self) -> Duration {
        match self.on_conflict {
            OnConflict::Wait(wait) => wait,
            OnConflict::Reject => Self::WAIT,
        }
    }

    /// The retention of an unfinished record of a call with this `ttl`, and of an operator's answer
    /// to it: an unknown outcome is not forgotten sooner than a known one.
    pub(crate) fn linger(&self, ttl: Duration) -> Duration {
        self.in_doubt_retention.max(ttl)
    }
}
