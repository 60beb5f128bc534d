//! Where a call comes from, as its record shows it to operators: the process and the trace.

use std::sync::Arc;

use super::Inner;
use crate::error::Error;

/// The size of the longest namespace, holder and trace context, in bytes. Stores keep texts of this
/// size as they are.
pub(super) const LONGEST: usize = 64;

/// The trace that a call belongs to. See [`Builder::trace_context`](crate::Builder::trace_context).
///
/// Closures that return the trace context implement it.
pub trait TraceContext: Send + Sync + 'static {
    /// The W3C `traceparent` of the caller, or `None` if there is none or if it is not sampled,
    /// and so cannot be looked up. Called by the task that makes the call, once for each claim.
    fn current(&self) -> Option<Arc<str>>;
}

impl<F> TraceContext for F
where
    F: Fn() -> Option<Arc<str>> + Send + Sync + 'static,
{
    fn current(&self) -> Option<Arc<str>> {
        self()
    }
}

/// Returns true if `text` can be kept on a record and shown in a line of a list.
fn is_kept(text: &str) -> bool {
    (1..=LONGEST).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// Checks the name of the process.
pub(super) fn check_instance(instance: &str) -> Result<(), Error> {
    if is_kept(instance) {
        return Ok(());
    }
    // The text itself is not shown: control characters do not belong in logs either.
    Err(Error::config(format!(
        "`instance` has {} bytes; it must have 1 to {LONGEST}, and no control characters",
        instance.len()
    )))
}

impl Inner {
    /// The trace context of the current call, if there is one that a record can keep.
    pub(super) fn trace(&self) -> Option<Arc<str>> {
        let trace = self.settings.trace_context.as_ref()?.current()?;
        if is_kept(&trace) {
            return Some(trace);
        }
        tracing::debug!(
            bytes = trace.len(),
            "the trace context is left out: it must have 1 to {LONGEST} bytes, and no control \
             characters"
        );
        None
    }
}

/// The name of this process where the user has given it none: host name and process ID, such as
/// `shop-6c9f/1234`. A long host name is cut.
pub(super) fn this_process() -> Arc<str> {
    named(&host_name(), std::process::id()).into()
}

fn named(host: &str, process: u32) -> String {
    let process = format!("/{process}");
    let mut name = String::with_capacity(LONGEST);
    for letter in host.chars().filter(|letter| !letter.is_control()) {
        if name.len() + letter.len_utf8() + process.len() > LONGEST {
            break;
        }
        name.push(letter);
    }
    if name.is_empty() {
        name.push_str("unknown");
    }
    name + &process
}

#[cfg(unix)]
fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(not(unix))]
fn host_name() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{LONGEST, is_kept, named, this_process};

    #[test]
    fn a_process_is_named_by_its_host_and_its_id() {
        assert_eq!(named("shop-6c9f", 1234), "shop-6c9f/1234");
        let (process, here) = (format!("/{}", std::process::id()), this_process());
        assert!(here.ends_with(&process) && here.len() > process.len(), "{here}");
        #[cfg(target_os = "linux")]
        {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
            assert_eq!(*here, *named(host.trim_end(), std::process::id()));
        }
    }

    #[test]
    fn a_host_of_any_name_gives_one_that_is_kept() {
        for (host, expected) in
            [("", "unknown/7"), ("\n\0", "unknown/7"), ("a\nb", "ab/7"), ("größe", "größe/7")]
        {
            assert_eq!(named(host, 7), expected);
        }
        for letter in ["x", "ö", "🪑"] {
            let name = named(&letter.repeat(300), u32::MAX);
            assert!(is_kept(&name) && name.len() > LONGEST - 4, "{name}");
            assert!(name.ends_with("/4294967295"), "{name}");
        }
    }
}
