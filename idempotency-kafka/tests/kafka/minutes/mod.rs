//! Tests that wait for the timers of groups, three seconds and more for each member that joins or is
//! lost: minutes in all. The test command runs them in its long version alone.

mod fleet;
mod kills;
mod outages;
mod rebalance;
mod stalls;
mod transactions;
