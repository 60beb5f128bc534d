//! The requests for messages.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::{Batch, BatchErrorKind};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::{AckKind, Message};
use futures::future::{FutureExt as _, join_all};
use futures::stream::StreamExt as _;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::error::Error;

/// How long a request waits for messages. Short: one that is lost with its connection is noticed
/// by its end, and a consumer that stops waits for it.
const EXPIRES: Duration = Duration::from_secs(1);
/// The time after its end at which a request counts as lost.
const OVERDUE: Duration = Duration::from_secs(1);
/// The pause after the server has refused a request.
const PAUSE: Duration = Duration::from_secs(1);
/// So many requests without an answer, one after the other, are worth a warning, and so is each time
/// that many.
const UNANSWERED: u32 = 3;

/// The requests of a consumer, one at a time, and what has come that is not taken yet.
pub(crate) struct Pulls {
    consumer: PullConsumer,
    /// At most so many messages in a request.
    most: usize,
    expires: Duration,
    /// The time after which the messages that wait here are kept again.
    keep_every: Duration,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    pull: Option<Pull>,
    waiting: VecDeque<Message>,
    kept: Option<Instant>,
    /// How many requests had no answer, not even at their end, since the last one that had.
    unanswered: u32,
}

struct Pull {
    batch: Batch,
    overdue: Instant,
}

impl Pulls {
    pub(crate) fn new(consumer: PullConsumer, patience: Duration) -> Self {
        let config = &consumer.cached_info().config;
        let most = usize::try_from(config.max_batch).ok().filter(|most| *most > 0);
        let most_patient = Some(config.max_expires).filter(|longest| !longest.is_zero());
        Self {
            most: most.unwrap_or(usize::MAX),
            expires: most_patient.map_or(EXPIRES, |longest| longest.min(EXPIRES)),
            keep_every: patience / 3,
            consumer,
            open: Mutex::default(),
        }
    }

    /// Waits for messages, and returns at least one and at most `room`. Without room it only keeps
    /// what has come. Dropping the future loses none.
    pub(crate) async fn take(&self, room: usize) -> Result<Vec<Message>, Error> {
        let mut open = self.open.lock().await;
        loop {
            open.gather();
            if room == 0 {
                self.rest(&mut open).await;
                continue;
            }
            if !open.waiting.is_empty() {
                let count = room.min(open.waiting.len());
                return Ok(open.waiting.drain(..count).collect());
            }
            if open.pull.is_none() {
                open.pull = Some(self.request(room).await?);
            }
            self.next(&mut open).await?;
        }
    }

    /// Requests no more, and returns what has come, once the last request has its end.
    ///
    /// The server does not know a way to take a request back. What is returned to it while one is
    /// open comes at once by that request again, and counts as delivered: a few returns would use up
    /// `max_deliver`, or the attempts of a message that was never tried.
    pub(crate) async fn stop(&self) -> Vec<Message> {
        let mut open = self.open.lock().await;
        open.gather();
        while let Some(Pull { overdue, .. }) = open.pull {
            if timeout_at(overdue, self.rest(&mut open)).await.is_err() {
                open.pull = None;
            }
        }
        std::mem::take(&mut open.waiting).into()
    }

    async fn request(&self, room: usize) -> Result<Pull, Error> {
        let batch = self.consumer.batch().max_messages(room.min(self.most)).expires(self.expires);
        let batch = batch.messages().await.map_err(|source| {
            let has_ended = matches!(
                source.kind(),
                BatchErrorKind::Subscribe | BatchErrorKind::Pull | BatchErrorKind::Flush
            );
            if has_ended {
                return Error::ConnectionEnded(source);
            }
            let consumer = self.consumer.cached_info().name.clone();
            Error::NotRequested { consumer, source }
        })?;
        Ok(Pull { batch, overdue: Instant::now() + self.expires + OVERDUE })
    }

    /// Waits for a message of the request, or for its end.
    async fn next(&self, open: &mut Open) -> Result<(), Error> {
        let Some(pull) = &mut open.pull else { return Ok(()) };
        match timeout_at(pull.overdue, pull.batch.next()).await {
            Ok(Some(Ok(message))) => {
                open.unanswered = 0;
                open.waiting.push_back(message);
            }
            Ok(Some(Err(error))) => {
                (open.pull, open.unanswered) = (None, 0);
                self.look(error).await?;
            }
            Ok(None) => (open.pull, open.unanswered) = (None, 0),
            // It was lost with its connection, or the client may not ask.
            Err(_) => {
                open.pull = None;
                open.unanswered = open.unanswered.saturating_add(1);
                if open.unanswered.is_multiple_of(UNANSWERED) {
                    let consumer = &self.consumer.cached_info().name;
                    tracing::warn!(
                        %consumer,
                        unanswered = open.unanswered,
                        "NATS does not answer requests for messages: the connection is lost, or this \
                         client may not request them"
                    );
                }
            }
        }
        Ok(())
    }

    /// Keeps what has come, and what comes of the last request.
    async fn rest(&self, open: &mut Open) {
        let since = *open.kept.get_or_insert_with(Instant::now);
        let next = async {
            match &mut open.pull {
                Some(pull) => pull.batch.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            next = next => match next {
                Some(Ok(message)) => open.waiting.push_back(message),
                _ => open.pull = None,
            },
            () = sleep_until(since + self.keep_every) => {
                open.kept = Some(Instant::now());
                let kept = open.waiting.iter().map(|message| message.ack_with(AckKind::Progress));
                join_all(kept).await;
            }
        }
    }

    /// Fails if the consumer is gone. Otherwise the server has a reason of its own, which passes.
    async fn look(&self, error: async_nats::Error) -> Result<(), Error> {
        let info = self.consumer.cached_info();
        let (stream, consumer) = (&info.stream_name, &info.name);
        if let Err(source) = self.consumer.get_info().await
            && is_missing(&source.kind())
        {
            let (stream, consumer) = (stream.clone(), consumer.clone());
            return Err(Error::MissingConsumer { stream, consumer, source });
        }
        tracing::warn!(%stream, %consumer, %error, "NATS refuses a request for messages");
        sleep(PAUSE).await;
        Ok(())
    }
}

impl Open {
    /// Takes what the client has already.
    fn gather(&mut self) {
        while let Some(pull) = &mut self.pull
            && let Some(next) = pull.batch.next().now_or_never()
        {
            match next {
                Some(Ok(message)) => self.waiting.push_back(message),
                // An error comes again with the next request.
                Some(Err(_)) | None => self.pull = None,
            }
        }
    }
}

pub(crate) fn is_missing(kind: &ConsumerInfoErrorKind) -> bool {
    matches!(kind, ConsumerInfoErrorKind::NotFound | ConsumerInfoErrorKind::StreamNotFound)
}
