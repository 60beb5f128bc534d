//! The requests for messages.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::operation::receive_message::ReceiveMessageError;
use aws_sdk_sqs::types::MessageSystemAttributeName;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use uuid::Uuid;

use crate::error::Error;
use crate::message::{KeyOf, SqsMessage};
use crate::requests::{ANSWER_WITHIN, BATCH, Queue, described};

/// How long a request waits for messages: as long as SQS allows.
const WAIT: Duration = Duration::from_secs(20);
/// How many requests wait at once, at most.
const MOST_REQUESTS: usize = 16;
/// The pause after SQS has refused a request, or given no answer.
const PAUSE: Duration = Duration::from_secs(1);

type Received = Result<Vec<Arc<SqsMessage>>, Error>;

/// The requests of a consumer, and what has come that is not taken yet.
pub(crate) struct Receives {
    pub(crate) queue: Queue,
    pub(crate) name: Arc<str>,
    pub(crate) key: Option<KeyOf>,
    /// The visibility timeout.
    pub(crate) patience: Duration,
    pub(crate) open: Mutex<Open>,
}

#[derive(Default)]
pub(crate) struct Open {
    /// Each with the number of messages that it may bring.
    requests: FuturesUnordered<BoxFuture<'static, (usize, Received)>>,
    /// How many they may bring together.
    asked: usize,
    /// How many requests are worth while: one more whenever a request has brought something.
    wanted: usize,
    waiting: VecDeque<Arc<SqsMessage>>,
    failure: Option<Error>,
    kept: Option<Instant>,
}

impl Receives {
    /// Waits for messages, and returns at least one and at most `room`. Without room it only keeps
    /// what has come. Dropping the future loses none: the requests are in `self`.
    pub(crate) async fn take(&self, room: usize) -> Received {
        let mut open = self.open.lock().await;
        loop {
            open.gather();
            if let Some(failure) = open.failure.take() {
                return Err(failure);
            }
            if room == 0 {
                self.rest(&mut open).await;
                continue;
            }
            if !open.waiting.is_empty() {
                let count = room.min(open.waiting.len());
                return Ok(open.waiting.drain(..count).collect());
            }
            while open.asked < room && open.requests.len() < open.wanted.clamp(1, MOST_REQUESTS) {
                let count = BATCH.min(room - open.asked);
                open.asked += count;
                open.requests.push(self.request(count));
            }
            if let Some(ended) = open.requests.next().await {
                open.note(ended);
            }
        }
    }

    /// Requests no more, and returns what has come, and what else may.
    pub(crate) async fn stop(
        &self,
    ) -> (Vec<Arc<SqsMessage>>, FuturesUnordered<BoxFuture<'static, (usize, Received)>>) {
        let mut open = self.open.lock().await;
        open.gather();
        let waiting = std::mem::take(&mut open.waiting).into();
        (waiting, std::mem::take(&mut open.requests))
    }

    fn request(&self, count: usize) -> BoxFuture<'static, (usize, Received)> {
        let is_fifo = self.queue.is_fifo();
        let (url, name, key) = (self.queue.url.clone(), self.name.clone(), self.key.clone());
        let whole = |duration: Duration| i32::try_from(duration.as_secs()).unwrap_or(i32::MAX);
        let request = self
            .queue
            .client
            .receive_message()
            .queue_url(&*url)
            .max_number_of_messages(i32::try_from(count).unwrap_or(1))
            .wait_time_seconds(whole(WAIT))
            .visibility_timeout(whole(self.patience))
            .message_system_attribute_names(MessageSystemAttributeName::All)
            .message_attribute_names("All")
            // With it, an answer that was lost on its way is given again to the client's next try.
            .set_receive_request_attempt_id(is_fifo.then(|| Uuid::new_v4().to_string()));
        let request = async move {
            let refusal = match timeout(WAIT + ANSWER_WITHIN, request.send()).await {
                Ok(Ok(answer)) => {
                    let messages = answer.messages.unwrap_or_default().into_iter();
                    let message = |message| {
                        Arc::new(SqsMessage::new(message, name.clone(), is_fifo, key.clone()))
                    };
                    return Ok(messages.map(message).collect());
                }
                Ok(Err(error)) => {
                    let service = error.as_service_error();
                    if service.is_some_and(ReceiveMessageError::is_queue_does_not_exist) {
                        return Err(Error::MissingQueue { url: url.to_string() });
                    }
                    described(&error)
                }
                Err(_) => "no answer".to_owned(),
            };
            tracing::warn!(queue = &*name, error = refusal, "SQS refuses a request for messages");
            sleep(PAUSE).await;
            Ok(Vec::new())
        };
        request.map(move |received| (count, received)).boxed()
    }

    /// Keeps what has come, and what comes of the requests.
    async fn rest(&self, open: &mut Open) {
        let since = *open.kept.get_or_insert_with(Instant::now);
        let next = async {
            match open.requests.next().await {
                Some(ended) => ended,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = next => open.note(ended),
            () = sleep_until(since + self.patience / 3) => {
                open.kept = Some(Instant::now());
                let kept = open.waiting.iter().map(|message| (message.clone(), self.patience));
                let kept: Vec<_> = kept.collect();
                if let Err(error) = self.queue.answer(&[], &kept).await.into_result() {
                    tracing::warn!(queue = &*self.name, %error, "messages that wait were not kept");
                }
            }
        }
    }
}

impl Open {
    /// Takes what the client has already.
    fn gather(&mut self) {
        while let Some(Some(ended)) = self.requests.next().now_or_never() {
            self.note(ended);
        }
    }

    fn note(&mut self, (count, received): (usize, Received)) {
        self.asked = self.asked.saturating_sub(count);
        match received {
            Ok(answer) if answer.is_empty() => self.wanted = 1,
            Ok(answer) => {
                self.wanted = self.requests.len() + 2;
                self.waiting.extend(answer);
            }
            Err(error) => self.failure = Some(error),
        }
    }
}
