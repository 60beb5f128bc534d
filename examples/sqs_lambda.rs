//! A Lambda function for a queue of SQS: each record goes through the inbox, and what is not done
//! is reported in `batchItemFailures`. Here the event comes from the standard input:
//!
//! ```sh
//! cargo run -p idempotency-sqs --example sqs_lambda < examples/data/sqs_event.json
//! ```
//!
//! The only argument is the deadline in seconds.
//!
//! In a function, `aws_lambda_events` has these types, and `lambda_runtime` calls `handle`. Set
//! `ReportBatchItemFailures` in the event source mapping: without it, one failure repeats the batch.

use std::time::Duration;

use anyhow::Context as _;
use idempotency::Idempotency;
use idempotency::inbox::{Delivery, Disposition, Inbox};
use idempotency::store::MemoryStore;
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    records: Vec<Record>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    message_id: String,
    body: String,
    #[serde(rename = "eventSourceARN")]
    event_source_arn: String,
    attributes: Attributes,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attributes {
    approximate_receive_count: String,
    message_group_id: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    batch_item_failures: Vec<Failure>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Failure {
    item_identifier: String,
}

/// Less than the function's timeout: when that ends, no response is sent, and all runs again. A
/// function subtracts a second from the time that its context has left.
const DEADLINE: Duration = Duration::from_secs(25);

async fn handle(inbox: &Inbox, event: Event, deadline: Duration) -> Response {
    let end = tokio::time::Instant::now() + deadline;
    let (mut failures, mut failed_groups) = (Vec::new(), Vec::new());
    for Record { message_id, body, event_source_arn, attributes } in event.records {
        // Behind a failure nothing of a FIFO group may run, or its order is lost. The groups of other
        // queues have none.
        let is_fifo = event_source_arn.strip_suffix(".fifo").is_some();
        let group = attributes.message_group_id.filter(|_| is_fifo);
        let is_behind = group.is_some() && failed_groups.contains(&group);
        // What begins when there is no time left would be in doubt.
        let has_time = tokio::time::Instant::now() < end;
        let is_done = !is_behind && has_time && {
            let delivery = Delivery::new(("message-id", &*message_id)).payload(body.as_bytes());
            let delivery =
                delivery.deliveries(attributes.approximate_receive_count.parse().unwrap_or(1));
            let handled = inbox.handle(delivery, || charge(&body));
            let handled = tokio::time::timeout_at(end, handled).await;
            handled.is_ok_and(|handled| handled.disposition == Disposition::Ack)
        };
        if !is_done {
            failures.push(Failure { item_identifier: message_id });
            failed_groups.push(group);
        }
    }
    Response { batch_item_failures: failures }
}

/// Charges a payment. Without an amount it fails.
async fn charge(body: &str) -> anyhow::Result<()> {
    let payment: serde_json::Value = serde_json::from_str(body)?;
    let latency = payment["latency"].as_u64().unwrap_or(10);
    tokio::time::sleep(Duration::from_millis(latency)).await;
    let amount = payment["amount"].as_u64().context("no amount")?;
    eprintln!("charged {amount}");
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // A function has a store that all its instances share, as DynamoDB or Redis.
    let engine = Idempotency::new(MemoryStore::new());
    let inbox = Inbox::new(engine, "payments", Duration::from_secs(14 * 86_400));
    let deadline = std::env::args().nth(1).map(|seconds| seconds.parse().map(Duration::from_secs));
    let deadline = deadline.transpose().context("the deadline is a number of seconds")?;
    let event = serde_json::from_reader(std::io::stdin())?;
    let response = handle(&inbox, event, deadline.unwrap_or(DEADLINE)).await;
    println!("{}", serde_json::to_string(&response)?);
    Ok(())
}
