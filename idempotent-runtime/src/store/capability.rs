//! Capabilities of a store.

/// The capabilities of a store beyond the required operations. Tests, operators' tools and the
/// documentation follow them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "each answers a question of its own")]
pub struct Capabilities {
    /// The clock that decides when a lease or a record expires.
    pub clock: StoreClock,
    /// True if acknowledged writes survive a restart of the store.
    pub durable: bool,
    /// True if other processes see the records.
    pub shared: bool,
    /// True if a watch is woken by the store rather than by polling.
    pub push: bool,
    /// True if one transaction keeps all other writers of the store waiting.
    pub single_writer: bool,
    /// True if expired records stay until they are [purged](super::Store::purge).
    pub needs_purging: bool,
    /// True if a [scan](super::Store::scan) lists each record once, in the order of the keys.
    pub lists_in_order: bool,
}

impl Capabilities {
    /// A store in this process that loses everything when the process ends.
    pub const fn in_process() -> Self {
        Self {
            clock: StoreClock::Injected,
            durable: false,
            shared: false,
            push: true,
            single_writer: false,
            needs_purging: false,
            lists_in_order: true,
        }
    }

    /// A server with its own clock that keeps what it acknowledged.
    pub const fn server() -> Self {
        Self {
            clock: StoreClock::Own,
            durable: true,
            shared: true,
            push: false,
            single_writer: false,
            needs_purging: false,
            lists_in_order: true,
        }
    }
}

/// The clock that decides when a lease or a record expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreClock {
    /// The store's own clock: a skewed client changes nothing.
    Own,
    /// The clock that was injected into the store.
    Injected,
    /// The clients' clocks, with a margin for their skew.
    ClientWithMargin,
}
