//! The channel of a queue, which is opened again when the broker closes it.

use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use lapin::message::Delivery;
use lapin::options::{
    BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, ConnectionState, Consumer, ErrorKind};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::error::Error;

/// The time between two looks at a channel whose broker is silent, and at a connection that
/// recovers.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The least time between two channels: one that is closed again and again is no busy loop.
const LEAST_LIFE: Duration = Duration::from_secs(1);
/// The time for the end of the deliveries. Messages that are not returned by then are when the
/// channel is closed.
const CANCEL_WITHIN: Duration = Duration::from_secs(5);

/// The channel and its consumer.
pub(crate) struct Link {
    connection: Arc<Connection>,
    options: LinkOptions,
    open: Mutex<Open>,
}

#[derive(Clone)]
pub(crate) struct LinkOptions {
    pub(crate) queue: ShortString,
    pub(crate) prefetch: u16,
    /// The time in which a connection has to recover.
    pub(crate) recovery: Duration,
}

struct Open {
    channel: Channel,
    deliveries: Consumer,
    since: Instant,
    /// The deliveries have ended.
    broken: Option<Break>,
    /// The channel recovers since then, or its connection does.
    down: Option<Instant>,
    /// The request for another one. It runs on where the receive that has begun it is dropped: a
    /// consumer that the broker knows and this process does not would get messages that are read by
    /// none.
    opening: Option<JoinHandle<Result<Open, Error>>>,
}

/// The reason why deliveries have ended.
#[derive(Clone)]
enum Break {
    Failed(lapin::Error),
    /// The broker gives none: it has cancelled the consumer, or the notice was lost.
    Cancelled,
}

impl Link {
    /// Opens a channel and begins to consume.
    pub(crate) async fn open(
        connection: Arc<Connection>,
        options: LinkOptions,
    ) -> Result<Self, Error> {
        let queue = &options.queue;
        look_for(&connection, queue).await.map_err(|error| missing(error, queue))?;
        let channel = create(&connection).await?;
        let open = consume(channel, queue, options.prefetch).await?;
        Ok(Self { connection, options, open: Mutex::new(open) })
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Waits for deliveries, and returns at least one and at most `room`. Dropping the future loses
    /// none.
    pub(crate) async fn take(&self, room: usize) -> Result<Vec<Delivery>, Error> {
        let mut open = self.open.lock().await;
        loop {
            if open.broken.is_some() {
                self.mend(&mut open).await?;
            }
            let delivery = tokio::select! {
                biased;
                delivery = open.deliveries.next() => delivery,
                () = sleep(LOOK_EVERY) => {
                    self.look(&mut open)?;
                    continue;
                }
            };
            open.down = None;
            match delivery {
                Some(Ok(first)) => {
                    let mut taken = vec![first];
                    while taken.len() < room {
                        match open.deliveries.next().now_or_never() {
                            Some(Some(Ok(next))) => taken.push(next),
                            Some(Some(Err(error))) => open.broken = Some(Break::Failed(error)),
                            Some(None) => open.broken = Some(Break::Cancelled),
                            None => break,
                        }
                        if open.broken.is_some() {
                            break;
                        }
                    }
                    return Ok(taken);
                }
                Some(Err(error)) => open.broken = Some(Break::Failed(error)),
                None => open.broken = Some(Break::Cancelled),
            }
        }
    }

    /// Looks at a channel that is silent. A notice of its end can be lost where the channel recovers
    /// and its consumer does not, and a recovery can hang where the connection is lost in it.
    fn look(&self, open: &mut Open) -> Result<(), Error> {
        let status = open.channel.status();
        if status.connected() {
            open.down = None;
            return Ok(());
        }
        let is_recovering = status.reconnecting() || status.initializing();
        let since = *open.down.get_or_insert_with(Instant::now);
        if !is_recovering || since.elapsed() >= self.options.recovery {
            if !self.connection.status().connected() && is_recovering {
                return Err(Error::ConnectionEnded(not_connected()));
            }
            open.broken = Some(Break::Cancelled);
        }
        Ok(())
    }

    /// Lets the deliveries go on. What was delivered before is delivered again by the broker, if its
    /// channel has ended.
    async fn mend(&self, open: &mut Open) -> Result<(), Error> {
        let queue = &self.options.queue;
        let cause = match open.broken.clone() {
            Some(Break::Failed(error)) => {
                tracing::warn!(%queue, %error, "the deliveries of a queue break off");
                // lapin opens the same channel again, with its consumer.
                let recovery = open.channel.wait_for_recovery(error.clone());
                let recovered = timeout(self.options.recovery, recovery).await;
                if matches!(recovered, Ok(Ok(()))) && open.channel.status().connected() {
                    open.broken = None;
                    return Ok(());
                }
                error
            }
            Some(Break::Cancelled) | None => {
                tracing::warn!(%queue, "the broker ends the deliveries of a queue");
                not_connected()
            }
        };
        sleep(LEAST_LIFE.saturating_sub(open.since.elapsed())).await;
        let end = Instant::now() + self.options.recovery;
        loop {
            let status = self.connection.status();
            let is_recovering = status.reconnecting() || status.connecting();
            if !status.connected() && (!is_recovering || Instant::now() >= end) {
                return Err(self.ended(cause));
            }
            if status.connected() {
                match self.opened(open).await {
                    Ok(again) => {
                        *open = again;
                        return Ok(());
                    }
                    Err(error) if self.connection.status().connected() => return Err(error),
                    // It is the connection that has just been lost.
                    Err(_) => {}
                }
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn ended(&self, cause: lapin::Error) -> Error {
        if matches!(cause.kind(), ErrorKind::ParsingError(_)) {
            return Error::Unreadable { queue: self.options.queue.to_string(), source: cause };
        }
        Error::ConnectionEnded(cause)
    }

    /// Waits for another channel or consumer, which is asked for once.
    async fn opened(&self, open: &mut Open) -> Result<Open, Error> {
        let opening = open.opening.get_or_insert_with(|| {
            let (connection, options) = (self.connection.clone(), self.options.clone());
            tokio::spawn(open_again(connection, open.channel.clone(), options))
        });
        let opened = timeout(self.options.recovery, opening).await;
        let no_answer = || Error::NoAnswer { queue: self.options.queue.to_string() };
        let Ok(ended) = opened else { return Err(no_answer()) };
        open.opening = None;
        ended.unwrap_or_else(|_| Err(no_answer()))
    }

    /// Ends the deliveries, and returns those that were not taken.
    pub(crate) async fn cancel(&self) -> Vec<Delivery> {
        let mut open = self.open.lock().await;
        let mut left = Vec::new();
        let ended = timeout(CANCEL_WITHIN, async {
            if let Some(opening) = open.opening.take()
                && let Ok(Ok(again)) = opening.await
            {
                *open = again;
            }
            let tag = open.deliveries.tag();
            let cancelled = open.channel.basic_cancel(tag, BasicCancelOptions::default()).await;
            if let Err(error) = cancelled {
                tracing::debug!(%error, "a consumer was not cancelled: its channel has ended");
                return;
            }
            while let Some(Ok(delivery)) = open.deliveries.next().await {
                left.push(delivery);
            }
        });
        if ended.await.is_err() {
            let queue = &self.options.queue;
            tracing::warn!(%queue, "the broker does not end the deliveries of a queue");
        }
        left
    }
}

/// The cause, where the client names none.
fn not_connected() -> lapin::Error {
    ErrorKind::InvalidConnectionState(ConnectionState::Closed).into()
}

pub(crate) async fn create(connection: &Connection) -> Result<Channel, Error> {
    connection.create_channel().await.map_err(|error| refused(connection, error))
}

/// Consumes with acknowledgements.
async fn consume(channel: Channel, queue: &ShortString, prefetch: u16) -> Result<Open, Error> {
    channel.basic_qos(prefetch, BasicQosOptions { global: false }).await.map_err(Error::Refused)?;
    let options = BasicConsumeOptions { no_ack: false, ..BasicConsumeOptions::default() };
    let deliveries = channel
        .basic_consume(queue.clone(), ShortString::default(), options, FieldTable::default())
        .await
        .map_err(Error::Refused)?;
    let since = Instant::now();
    Ok(Open { channel, deliveries, since, broken: None, down: None, opening: None })
}

async fn open_again(
    connection: Arc<Connection>,
    before: Channel,
    options: LinkOptions,
) -> Result<Open, Error> {
    // Where only the consumer was cancelled, what is in hand still belongs to its channel.
    let channel = if before.status().connected() { before } else { create(&connection).await? };
    let opened = consume(channel, &options.queue, options.prefetch).await;
    opened.map_err(|error| missing(error, &options.queue))
}

/// Fails if the broker does not have this queue. On a channel of its own, which such an answer ends.
pub(crate) async fn look_for(connection: &Connection, queue: &ShortString) -> Result<(), Error> {
    let channel = create(connection).await?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(queue.clone(), options, FieldTable::default()).await;
    declared.map_err(|error| refused(connection, error))?;
    let closed = channel.close(200, ShortString::default()).await;
    closed.map_err(|error| refused(connection, error))
}

fn refused(connection: &Connection, error: lapin::Error) -> Error {
    let is_up = connection.status().connected();
    if is_up { Error::Refused(error) } else { Error::ConnectionEnded(error) }
}

fn missing(error: Error, queue: &ShortString) -> Error {
    match error {
        Error::Refused(source) if is_not_found(&source) => {
            Error::MissingQueue { queue: queue.to_string(), source }
        }
        error => error,
    }
}

pub(crate) fn is_not_found(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error)
        if *error.kind() == AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND))
}
