//! The example, started as a user starts it.

use idempotency_test_support::consuming::example_prints;

use crate::scene::broker;

#[tokio::test]
async fn a_day_of_payments_with_a_killed_worker_comes_to_the_right_sums() -> anyhow::Result<()> {
    // As `examples/data/README.md` has it.
    let rows = [
        "EUR   12032.58 in 143 charges",
        "GBP    6770.99 in 68 charges",
        "USD    1013.17 in 17 charges",
        "pay_GN1Q5C75KM came with another amount: refused",
        "every payment was charged once: 228 charges",
    ];
    example_prints("rabbitmq_orders", &broker().await?.url(), &rows).await
}
