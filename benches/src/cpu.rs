//! The time that processes had a processor.

use std::time::Duration;

use anyhow::Context as _;

/// Of this process, and of those of its children that have ended.
pub struct Spent {
    pub own: Duration,
    pub children: Duration,
}

/// What the process with this id has spent until now. Ticks of ten milliseconds.
pub fn spent(pid: u32) -> anyhow::Result<Spent> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the program, in parentheses, may contain anything.
    let (_, fields) = stat.rsplit_once(')').context("`/proc/…/stat` has another form than expected")?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    let ticks = |index: usize| -> anyhow::Result<Duration> {
        let field = fields.get(index).context("`/proc/…/stat` has fewer fields than expected")?;
        Ok(Duration::from_millis(field.parse::<u64>()? * 1000 / rustix::param::clock_ticks_per_second()))
    };
    Ok(Spent { own: ticks(11)? + ticks(12)?, children: ticks(13)? + ticks(14)? })
}

/// What this process and the servers have spent.
pub fn together(servers: &[u32]) -> anyhow::Result<Duration> {
    let pids = servers.iter().copied().chain([std::process::id()]);
    pids.map(|pid| spent(pid).map(|spent| spent.own)).sum()
}

/// What the servers have spent.
pub fn of(servers: &[u32]) -> anyhow::Result<Duration> {
    servers.iter().map(|pid| spent(*pid).map(|spent| spent.own)).sum()
}
