//! The example, started as a user starts it.

use idempotency_test_support::consuming::example_prints;

use crate::scene::server;

#[tokio::test]
async fn a_day_of_receipts_with_a_killed_worker_comes_to_the_right_sums() -> anyhow::Result<()> {
    // As `examples/data/README.md` has it.
    let rows = [
        "EUR   12032.58 in 143 receipts",
        "GBP    6770.99 in 68 receipts",
        "USD    1013.17 in 17 receipts",
        "pay_GN1Q5C75KM came with another amount: refused",
        "every receipt was sent once: 228 receipts",
    ];
    example_prints("nats_mail", &server().await?.url(), &rows).await
}
