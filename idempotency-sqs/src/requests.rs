//! Requests to a queue: bounded in time, and for ten messages at most.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::SdkError;
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry,
};
use futures::future::{join, join_all};
use tokio::time::timeout;

use crate::error::Error;
use crate::message::SqsMessage;

/// The time for an answer to a request that does not wait for messages.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The messages of one request, at most.
pub(crate) const BATCH: usize = 10;
/// The longest time for which SQS keeps a message from others, since it was received.
const LONGEST_HOLD: Duration = Duration::from_secs(12 * 3_600);
/// Less than that: the server has delivered it before it came here.
const MARGIN: Duration = Duration::from_secs(60);

/// A queue, and the client that knows the way to it.
#[derive(Clone)]
pub(crate) struct Queue {
    pub(crate) client: Client,
    pub(crate) url: Arc<str>,
}

/// The answers that did not arrive.
#[derive(Default)]
pub(crate) struct Failures {
    failed: usize,
    of: usize,
    reason: Option<String>,
}

impl Failures {
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.failed += other.failed;
        self.of += other.of;
        self.reason = self.reason.or(other.reason);
        self
    }

    pub(crate) fn into_result(self) -> Result<(), Error> {
        let Self { failed, of, reason } = self;
        reason.map_or(Ok(()), |reason| Err(Error::Unanswered { failed, of, reason }))
    }

    /// Looks at the answer to a batch, entry by entry.
    fn of(of: usize, answer: Result<Vec<BatchResultErrorEntry>, String>) -> Self {
        match answer {
            Ok(entries) => Self {
                failed: entries.len(),
                of,
                reason: entries.first().map(|entry| {
                    format!("{}: {}", entry.code, entry.message.as_deref().unwrap_or_default())
                }),
            },
            Err(reason) => Self { failed: of, of, reason: Some(reason) },
        }
    }
}

impl Queue {
    /// The name says so, and nothing else need be asked.
    pub(crate) fn is_fifo(&self) -> bool {
        self.url.ends_with(".fifo")
    }

    /// Deletes messages, and makes others visible after a pause each.
    pub(crate) async fn answer(
        &self,
        done: &[Arc<SqsMessage>],
        again: &[(Arc<SqsMessage>, Duration)],
    ) -> Failures {
        let deleted = join_all(done.chunks(BATCH).map(|batch| self.delete(batch)));
        let changed = join_all(again.chunks(BATCH).map(|batch| self.change(batch)));
        let (deleted, changed) = join(deleted, changed).await;
        deleted.into_iter().chain(changed).fold(Failures::default(), Failures::and)
    }

    async fn delete(&self, batch: &[Arc<SqsMessage>]) -> Failures {
        // Positions: one message can be in a batch twice, and all ids have to differ.
        let entries = batch.iter().enumerate().map(|(position, message)| {
            DeleteMessageBatchRequestEntry::builder()
                .id(position.to_string())
                .receipt_handle(message.receipt())
                .build()
        });
        let entries = entries.collect::<Result<Vec<_>, _>>();
        let answer = async {
            let entries = Some(entries.map_err(|error| error.to_string())?);
            let request = self.client.delete_message_batch().queue_url(&*self.url);
            Ok(in_time(request.set_entries(entries).send()).await?.failed)
        };
        Failures::of(batch.len(), answer.await)
    }

    async fn change(&self, batch: &[(Arc<SqsMessage>, Duration)]) -> Failures {
        let entries = batch.iter().enumerate().map(|(position, (message, pause))| {
            ChangeMessageVisibilityBatchRequestEntry::builder()
                .id(position.to_string())
                .receipt_handle(message.receipt())
                .visibility_timeout(seconds(*pause, message.held()))
                .build()
        });
        let entries = entries.collect::<Result<Vec<_>, _>>();
        let answer = async {
            let entries = Some(entries.map_err(|error| error.to_string())?);
            let request = self.client.change_message_visibility_batch().queue_url(&*self.url);
            Ok(in_time(request.set_entries(entries).send()).await?.failed)
        };
        Failures::of(batch.len(), answer.await)
    }
}

/// Whole seconds, rounded up: SQS counts no shorter time. As many at most as are left of the
/// longest time.
pub(crate) fn seconds(pause: Duration, held: Duration) -> i32 {
    let pause = pause.min(LONGEST_HOLD.saturating_sub(held + MARGIN));
    let seconds = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

/// Returns the answer to a request, or the reason why there is none.
pub(crate) async fn in_time<T, E>(
    request: impl Future<Output = Result<T, SdkError<E>>>,
) -> Result<T, String>
where
    E: std::error::Error + Send + Sync + 'static,
{
    match timeout(ANSWER_WITHIN, request).await {
        Ok(answer) => answer.map_err(|error| described(&error)),
        Err(_) => Err("no answer within 10 seconds".to_owned()),
    }
}

/// The text of an error with those of its causes: the client's own say little.
pub(crate) fn described(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::seconds;

    #[test]
    fn a_pause_is_rounded_up_to_seconds_and_ends_before_twelve_hours() {
        let now = Duration::ZERO;
        for (pause, expected) in [(0, 0), (1, 1), (1_000, 1), (1_001, 2), (300_000, 300)] {
            assert_eq!(seconds(Duration::from_millis(pause), now), expected, "{pause} ms");
        }
        let day = Duration::from_secs(86_400);
        assert_eq!(seconds(day, now), 43_140);
        assert_eq!(seconds(day, Duration::from_secs(43_000)), 140);
        assert_eq!(seconds(day, day), 0);
    }
}
