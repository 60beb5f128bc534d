//! Free ports.

use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::Context as _;

/// The range of ports, below the one from which systems take the ports of outgoing connections.
/// While a server is restarted, a client that tries to reach it must not be assigned the server's
/// own port, which would connect it to itself.
const PORTS: Range<u16> = 20_000..32_000;

/// The next port to try. Test processes begin at different ones.
static NEXT: AtomicU16 = AtomicU16::new(0);

/// Returns a port of the loopback interface on which no process listens. Another process may take
/// it before the caller does.
pub(crate) fn free() -> anyhow::Result<u16> {
    let count = PORTS.end - PORTS.start;
    // Far apart for process ids that are close together.
    let offset = std::process::id().wrapping_mul(7_919) % u32::from(count);
    let offset = u16::try_from(offset).unwrap_or_default();
    (0..count)
        .map(|_| {
            let step = NEXT.fetch_add(1, Ordering::Relaxed) % count;
            PORTS.start + (offset + step) % count
        })
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .with_context(|| format!("no port from {} to {} is free", PORTS.start, PORTS.end))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    #[test]
    fn a_port_that_is_taken_is_not_given_out() {
        let held: Vec<_> = (0..20)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, super::free().unwrap())).unwrap())
            .collect();
        let mut ports: Vec<_> =
            held.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), held.len());
    }
}
