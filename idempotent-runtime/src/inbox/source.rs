//! The broker's side of a consumer: an adapter implements it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::delivery::Delivery;
use super::handled::Disposition;
use crate::key::KeyHash;

/// Where the messages of a [`Consumer`](super::Consumer) come from.
///
/// An adapter translates: it receives, and carries the consumer's dispositions to its broker. All
/// decisions are the consumer's.
///
/// ```
/// # use std::{convert::Infallible, sync::Arc, time::Duration};
/// # use tokio::sync::{Mutex, mpsc};
/// use idempotency::inbox::{Delivery, Disposition, Message, Order, Settled, Source};
///
/// /// Messages from another part of the same program, which are sent again if they fail.
/// struct Channel {
///     sender: mpsc::UnboundedSender<Arc<Mail>>,
///     receiver: Mutex<mpsc::UnboundedReceiver<Arc<Mail>>>,
/// }
///
/// struct Mail { id: u64, text: String }
///
/// impl Message for Mail {
///     fn delivery(&self) -> Delivery<'_> {
///         Delivery::new(self.id).payload(self.text.as_bytes())
///     }
///
///     fn label(&self) -> &str {
///         "mail"
///     }
/// }
///
/// impl Source for Channel {
///     type Message = Mail;
///     type Error = Infallible;
///     const ORDER: Order = Order::Free;
///
///     async fn receive(&self, room: usize) -> Result<Vec<Arc<Mail>>, Infallible> {
///         let mut received = Vec::new();
///         if room == 0 {
///             std::future::pending::<()>().await;
///         }
///         self.receiver.lock().await.recv_many(&mut received, room).await;
///         Ok(received)
///     }
///
///     async fn settle(&self, settled: Vec<Settled<Mail>>) -> Result<(), Infallible> {
///         for Settled { message, disposition, .. } in settled {
///             match disposition {
///                 Disposition::Ack => {}
///                 Disposition::DeadLetter(why) => eprintln!("{}: {}", message.id, why.as_str()),
///                 _ => drop(self.sender.send(message)), // a broker waits before it delivers again
///             }
///         }
///         Ok(())
///     }
///
///     fn patience(&self) -> Option<Duration> {
///         None
///     }
///
///     async fn keep(&self, _: Vec<Arc<Mail>>) -> Result<(), Infallible> {
///         Ok(())
///     }
/// }
/// # let _ = |channel: Channel| channel;
/// ```
pub trait Source: Send + Sync + 'static {
    /// A message as this broker delivers it.
    type Message: Message;

    /// An error of the broker or of its client.
    type Error: std::error::Error + Send + Sync + 'static;

    /// What follows from a failed message for those behind it in its [lane](Message::lane).
    const ORDER: Order;

    /// Waits for messages, and returns at least one and at most `room` of them. With no room it
    /// only keeps the connection alive: it need not return, and is called again if it does.
    ///
    /// Dropping the future loses no message. An error ends the consumer, after it has settled what
    /// it can: a source that can connect again does so within this function.
    fn receive(
        &self,
        room: usize,
    ) -> impl Future<Output = Result<Vec<Arc<Self::Message>>, Self::Error>> + Send;

    /// Reports dispositions to the broker. `Ok`: the broker, or the client's reliable way to it,
    /// has them.
    ///
    /// One that fails must not keep the others from being reported. A message whose disposition
    /// does not reach the broker has to be delivered again: whatever it says, nothing is lost. Of a
    /// [dead letter](Disposition::DeadLetter) the copy is confirmed first, and the original is
    /// acknowledged then.
    ///
    /// One report is on its way at a time, so it must neither take for ever nor sleep: a source
    /// whose broker cannot delay a message keeps the message itself until the time has come, and
    /// returns. Where the order is [`ReturnLane`](Order::ReturnLane), `Ok` says that the broker, or
    /// the source, delivers no message of the lane before the one that was returned.
    ///
    /// Where the order is [`HoldLane`](Order::HoldLane), each dead letter is a report of its own, and
    /// several are on their way beside the others. Its lane waits for it. After an error the message
    /// is handled again here, after a pause that grows from one second to five minutes, and before
    /// those behind it. A doubt that may have no record is not: its dead letter is reported again.
    fn settle(
        &self,
        settled: Vec<Settled<Self::Message>>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// The time for which the broker leaves a message with its consumer. `None`: as long as the
    /// connection lives. It is counted as three tenths of a second at least.
    fn patience(&self) -> Option<Duration>;

    /// Extends the time for which the broker leaves `held` with this consumer. Called every third
    /// of [`patience`](Self::patience), for all messages that run or wait, and for dead letters until
    /// their report has returned. Not for one whose handler has run for longer than the engine's
    /// [`max_run`](crate::Builder::max_run): another consumer is to find its record.
    fn keep(
        &self,
        held: Vec<Arc<Self::Message>>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Holds a lane back, or lets it go on: while it is held, [`receive`](Self::receive) returns no
    /// message of it. Called where the order is [`HoldLane`](Order::HoldLane): when the first
    /// message of a lane waits for its next try, or for its dead letter, and when as many as there
    /// are handlers wait behind it.
    ///
    /// Messages that wait take no room of other lanes. So a source whose lanes are many, such as keys,
    /// has a bound of its own for those that it has delivered and that are not settled.
    ///
    /// It is called while a `receive` is in flight, which has to notice it: its messages may be
    /// those of the lane that goes on. All lanes go on when the consumer stops. A log pauses the
    /// partition. The default does nothing, for sources of another order.
    fn hold_lane(&self, lane: u64, is_held: bool) {
        let _ = (lane, is_held);
    }

    /// Returns true if the broker delivers the message to another consumer, or will again: it is not
    /// handled here. Called before its handler begins, and not for one that waits for its next try.
    /// The message is then [postponed](Disposition::Postpone). The default is false.
    fn is_gone(&self, message: &Self::Message) -> bool {
        let _ = message;
        false
    }

    /// Called once when the consumer stops, before the messages that wait are returned: the broker
    /// is to deliver no more of them on this connection. Nothing is settled until it returns, so it
    /// must not take long. The default does nothing.
    fn stop(&self) -> impl Future<Output = Result<(), Self::Error>> + Send {
        async { Ok(()) }
    }
}

/// A message whose disposition is known.
#[derive(Debug)]
#[non_exhaustive]
pub struct Settled<M> {
    /// The message.
    pub message: Arc<M>,
    /// The answer to the broker.
    pub disposition: Disposition,
    /// The record of the message, for the header of a dead letter: an operator finds it by
    /// [`record_by_hash`](crate::Idempotency::record_by_hash). `None` if the message has no usable
    /// key or was not tried.
    pub record: Option<KeyHash>,
    /// The number of the attempt that ran in the last try; zero if none did.
    pub attempt: u32,
}

impl<M> Settled<M> {
    /// A message that was not tried.
    pub(super) fn untried(message: Arc<M>) -> Self {
        let disposition = Disposition::Postpone(Duration::ZERO);
        Self { message, disposition, record: None, attempt: 0 }
    }
}

/// A message of a [`Source`].
pub trait Message: Send + Sync + 'static {
    /// The message as an inbox needs to know it.
    fn delivery(&self) -> Delivery<'_>;

    /// The lane: messages of one lane are handled one after the other, in the order in which they
    /// were received. `None`: this message has a lane of its own.
    fn lane(&self) -> Option<u64> {
        None
    }

    /// The topic, queue or subject, for spans and logs. It is not a part of the key.
    fn label(&self) -> &str;
}

/// The order that a broker promises within a [lane](Message::lane).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Order {
    /// None: a failed message is delivered again, and those behind it go on.
    Free,
    /// The broker cannot deliver one message again: a failed one is tried again here, and its lane
    /// waits.
    HoldLane,
    /// A failed message is delivered again before those behind it: they go back to the broker
    /// too.
    ReturnLane,
}
