//! The processor time of processes.

use std::time::Duration;

use anyhow::Context as _;

/// Returns the time that all threads of the process have used so far; the system reports
/// nanoseconds.
fn spent(pid: u32) -> anyhow::Result<Duration> {
    let mut nanoseconds = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the listing and the reading.
        if let Ok(schedstat) = std::fs::read_to_string(thread?.path().join("schedstat")) {
            let field = schedstat.split_whitespace().next().context("`schedstat` is empty")?;
            nanoseconds += field.parse::<u64>()?;
        }
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Returns the time that this process and the servers have used.
pub fn together(servers: &[u32]) -> anyhow::Result<Duration> {
    let pids = servers.iter().copied().chain([std::process::id()]);
    pids.map(spent).sum()
}

/// Returns the time that the servers have used.
pub fn of(servers: &[u32]) -> anyhow::Result<Duration> {
    servers.iter().copied().map(spent).sum()
}

/// Returns the time of those children of this process that have ended, in ticks of ten
/// milliseconds.
pub fn children() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name of the program, in parentheses, may contain anything.
    let (_, fields) =
        stat.rsplit_once(')').context("`/proc/self/stat` has another form than expected")?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    let ticks = |index: usize| -> anyhow::Result<Duration> {
        let field =
            fields.get(index).context("`/proc/self/stat` has fewer fields than expected")?;
        Ok(Duration::from_millis(
            field.parse::<u64>()? * 1000 / rustix::param::clock_ticks_per_second(),
        ))
    };
    Ok(ticks(13)? + ticks(14)?)
}
