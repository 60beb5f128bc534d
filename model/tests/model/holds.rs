//! The unchanged protocol.

use crate::check::holds;
use crate::protocol::{Policy, Protocol};
use crate::seen::Event;
use crate::transaction::Transactions;

/// Checks the protocol by default with 3 callers and 1 fault, and with 4 callers that are slow at
/// most. The long run adds a fault to each.
///
/// `floor` is about half the number of states with a fault. Without one there are a third as many.
fn all_hold(protocol: &Protocol, floor: usize) {
    let is_long = std::env::var_os("IDEMPOTENCY_LONG").is_some();
    let sizes: &[(usize, u8)] = if is_long { &[(3, 1), (3, 2), (4, 1)] } else { &[(3, 1), (4, 0)] };
    for (callers, faults) in sizes {
        let protocol = Protocol { callers: *callers, faults: *faults, ..protocol.clone() };
        let floor = if *faults > 0 { floor } else { floor / 4 };
        holds(&protocol, floor);
        assert_eq!(protocol.seen.missing(), Vec::<Event>::new(), "what can happen did not");
    }
}

#[test]
fn hold_keeps_every_invariant() {
    all_hold(&Protocol::new(Policy::Hold), 100_000);
}

#[test]
fn retry_keeps_every_invariant() {
    all_hold(&Protocol::new(Policy::Retry), 300_000);
}

#[test]
fn retry_that_counts_attempts_keeps_every_invariant() {
    all_hold(&Protocol::new(Policy::Retry).counting_attempts(), 300_000);
}

#[test]
fn verify_with_an_outside_that_enforces_the_key_keeps_every_invariant() {
    all_hold(&Protocol::new(Policy::VerifyWithKey), 300_000);
}

#[test]
fn verify_that_waits_for_the_attempts_before_keeps_every_invariant() {
    all_hold(&Protocol::new(Policy::VerifyWhenOver), 300_000);
}

#[test]
fn resume_keeps_every_invariant() {
    all_hold(&Protocol::new(Policy::Resume), 500_000);
}

#[test]
fn transactions_keep_every_invariant() {
    holds(&Transactions::new(3), 1_000);
    holds(&Transactions::new(4), 8_000);
}
