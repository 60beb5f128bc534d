//! What a store can and cannot do.

/// What a store can do beyond the required operations. Tests, operators' tools and the
/// documentation follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "each answers a question of its own")]
pub struct Capabilities {
    /// Whose clock decides when a lease or a record is over.
    pub clock: StoreClock,
    /// Whether acknowledged writes survive a restart of the store.
    pub durable: bool,
    /// Whether other processes see the records.
    pub shared: bool,
    /// Whether a watch is woken by the store rather than by polling.
    pub push: bool,
    /// Whether one transaction keeps all other writers of the store waiting.
    pub single_writer: bool,
    /// Whether expired records stay until somebody [purges](super::Store::purge) them.
    pub needs_purging: bool,
}

impl Capabilities {
    /// A store in this process that forgets everything at its end.
    pub const fn in_process() -> Self {
        Self {
            clock: StoreClock::Injected,
            durable: false,
            shared: false,
            push: true,
            single_writer: false,
            needs_purging: false,
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
        }
    }
}

/// Whose clock decides when a lease or a record is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreClock {
    /// The store's own: a skewed client changes nothing.
    Own,
    /// The clock that was injected into the store.
    Injected,
    /// The clients' clocks, with a margin for their skew.
    ClientWithMargin,
}
