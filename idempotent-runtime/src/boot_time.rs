//! The machine's clock that keeps running while the machine is suspended.
//!
//! `std::time::Instant` stops then on Linux and on Apple's systems. An owner that relies on it
//! would, after a resume, believe in a lease that expired long ago, and start a body after other
//! callers have seen it expire. A virtual machine that its host pauses has no such clock.

use std::time::Duration;

/// Time since an arbitrary start in the past. It never goes back and keeps running while the
/// machine is suspended.
#[cfg(any(
    target_os = "linux",
    target_os = "android",
    target_os = "fuchsia",
    target_os = "openbsd"
))]
pub(crate) fn now() -> Duration {
    read(rustix::time::ClockId::Boottime)
}

/// Time since an arbitrary start in the past. It never goes back. On Apple's systems it keeps
/// running while the machine is suspended, because this clock is not the one behind `Instant`. On
/// other systems it is the best clock available.
#[cfg(all(
    unix,
    not(any(
        target_os = "linux",
        target_os = "android",
        target_os = "fuchsia",
        target_os = "openbsd"
    ))
))]
pub(crate) fn now() -> Duration {
    read(rustix::time::ClockId::Monotonic)
}

#[cfg(unix)]
fn read(clock: rustix::time::ClockId) -> Duration {
    // Neither clock is ever negative.
    Duration::try_from(rustix::time::clock_gettime(clock)).unwrap_or_default()
}

/// Time since the first call. It never goes back. On Windows it is the performance counter, which
/// keeps running while the machine is suspended.
#[cfg(not(unix))]
#[expect(clippy::disallowed_methods, reason = "this is the one place that asks the machine")]
pub(crate) fn now() -> Duration {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::{Command, Output};
    use std::time::Duration;

    /// The kernel's uptime, suspended time included, to a hundredth of a second.
    fn uptime() -> Duration {
        let text = std::fs::read_to_string("/proc/uptime").unwrap();
        Duration::from_secs_f64(text.split_whitespace().next().unwrap().parse().unwrap())
    }

    #[test]
    fn it_is_the_time_since_the_machine_was_started() {
        let hundredth = Duration::from_millis(10);
        let (before, now, after) = (uptime(), super::now(), uptime());
        assert!(
            before <= now + hundredth && now <= after + hundredth,
            "{before:?} {now:?} {after:?}"
        );
    }

    /// Runs `program` as if the machine had been suspended for ten days: its boot-time clock is
    /// that much ahead, and the clock that stops is unchanged.
    fn after_ten_days(program: &str, arguments: &[&str]) -> Option<Output> {
        let namespace =
            ["--user", "--map-root-user", "--time", "--boottime", "864000", "--fork", program];
        Command::new("unshare").args(namespace).args(arguments).output().ok()
    }

    #[test]
    fn it_goes_on_while_the_machine_is_suspended() {
        // Not every machine permits this to its users.
        if !after_ten_days("true", &[]).is_some_and(|output| output.status.success()) {
            eprintln!(
                "there are no namespaces of time here: only the time since the start was looked at"
            );
            return;
        }
        let here = std::env::current_exe().unwrap();
        let test = ["--exact", "boot_time::tests::it_is_the_time_since_the_machine_was_started"];
        let there = after_ten_days(here.to_str().unwrap(), &test).unwrap();
        let told = String::from_utf8_lossy(&there.stdout);
        assert!(there.status.success() && told.contains("1 passed"), "{told}");
    }
}
