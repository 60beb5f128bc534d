//! A process and the processes that it has started.

use std::path::Path;

use rustix::process::{Signal, kill_process};

use super::process::pid_of;

/// Sends `signal` to the processes that `parent` has started. Those that have ended in the meantime
/// do not matter: as long as their parent stands still, their ids are not reused.
pub(super) fn signal_children(parent: u32, signal: Signal) -> Vec<u32> {
    let children = children_of(parent);
    for pid in children.iter().filter_map(|child| pid_of(*child).ok()) {
        let _ = kill_process(pid, signal);
    }
    children
}

/// Returns the processes that `parent` has started and that have not been reaped.
fn children_of(parent: u32) -> Vec<u32> {
    let parent = parent.to_string();
    let processes =
        if Path::new("/proc/self/stat").exists() { listed_by_the_kernel() } else { listed_by_ps() };
    let children = processes.iter().filter(|(_, its_parent)| *its_parent == parent);
    children.filter_map(|(pid, _)| pid.parse().ok()).collect()
}

/// Returns all processes with their parents.
fn listed_by_the_kernel() -> Vec<(String, String)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| {
        let pid = entry.file_name().into_string().ok()?;
        pid.parse::<u32>().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name is in parentheses and may contain some. The state and the parent follow.
        let (_, rest) = stat.rsplit_once(") ")?;
        Some((pid, String::from(rest.split(' ').nth(1)?)))
    });
    processes.collect()
}

/// The same where there is no `/proc`.
fn listed_by_ps() -> Vec<(String, String)> {
    let listed = std::process::Command::new("ps").args(["-A", "-o", "pid=,ppid="]).output();
    let listed = listed.map(|output| output.stdout).unwrap_or_default();
    let pairs = String::from_utf8_lossy(&listed);
    pairs
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().map(String::from);
            Some((words.next()?, words.next()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    #[test]
    fn a_child_is_found_by_its_parent() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(super::children_of(std::process::id()).contains(&child.id()));
        assert!(super::children_of(child.id()).is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!super::children_of(std::process::id()).contains(&child.id()));
    }
}
