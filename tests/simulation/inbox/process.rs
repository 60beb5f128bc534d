//! One process: an engine, and a consumer of the broker's messages.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idempotency::Context;
use idempotency::clock::Clock as _;
use idempotency::inbox::{Consumer, Inbox};
use idempotency_test_support::history::Rule;
use idempotency_test_support::random::Random;
use tokio::sync::watch;

use super::broker::{Broker, Connection, Mail};
use super::plan::Kind;
use crate::life::Life;
use crate::plan::{DAY, millis_below};

/// The name of the inbox.
pub const INBOX: &str = "simulated inbox";

/// An effect of a handler.
#[derive(Clone, Debug, PartialEq)]
pub struct Effect {
    pub id: u64,
    pub attempt: u32,
}

/// The effects of a run, in order.
pub type Effects = Arc<Mutex<Vec<Effect>>>;

/// A handler has failed before its effect.
#[derive(Debug)]
pub struct Failed;

#[derive(Clone)]
pub struct Member {
    pub process: crate::process::Process,
    broker: Arc<Broker>,
    effects: Effects,
    /// What the consumer of this process is told.
    orders: watch::Sender<Told>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Told {
    stop: bool,
    /// How often the future of the consumer is dropped.
    drops: u32,
    /// How often its connection is cut.
    cuts: u32,
}

impl Member {
    pub fn start(
        process: crate::process::Process,
        broker: &Arc<Broker>,
        effects: &Effects,
        random: Random,
    ) -> Self {
        let member = Self {
            process,
            broker: broker.clone(),
            effects: effects.clone(),
            orders: watch::Sender::default(),
        };
        let consumes = member.clone();
        member.process.life.spawn(async move {
            match consumes.broker.plan.kind {
                Kind::Queue => consumes.consumes::<0>(random).await,
                Kind::Log => consumes.consumes::<1>(random).await,
                Kind::Groups => consumes.consumes::<2>(random).await,
            }
        });
        member
    }

    pub fn life(&self) -> &Arc<Life> {
        &self.process.life
    }

    pub fn stop(&self) {
        self.orders.send_modify(|told| told.stop = true);
    }

    pub fn drop_future(&self) {
        self.orders.send_modify(|told| told.drops += 1);
    }

    pub fn cut(&self) {
        self.orders.send_modify(|told| told.cuts += 1);
    }

    /// Consumes until it is told to stop, and begins anew when its future was dropped.
    async fn consumes<const ORDER: u8>(self, mut random: Random) {
        let plan = &self.broker.plan;
        let mut orders = self.orders.subscribe();
        loop {
            let inbox = Inbox::new(self.process.engine.clone(), INBOX, DAY)
                .with_on_crash(plan.on_crash)
                .with_max_attempts(plan.max_attempts)
                .with_backoff(Duration::from_millis(500), Duration::from_secs(10))
                .with_wait(plan.wait);
            let connection = Arc::new(self.broker.connect::<ORDER>(self.life()));
            let number = connection.number();
            let consumer = Consumer::new(inbox, Shared(connection.clone()))
                .with_concurrency(plan.concurrency)
                .with_drain(plan.drain);
            let mut stops = self.orders.subscribe();
            let stop = async move {
                let _ = stops.wait_for(|told| told.stop).await;
            };
            let site = (self.clone(), Arc::new(Mutex::new(random.fork())));
            let handler = move |mail: Arc<Mail>| {
                let (member, random) = site.clone();
                let random = random.lock().unwrap_or_else(PoisonError::into_inner).fork();
                async move { member.handles(mail.id, random).await }
            };
            let before = *orders.borrow_and_update();
            let mut run = Box::pin(consumer.run(stop, handler));
            let ended = loop {
                let told = tokio::select! {
                    biased;
                    ended = &mut run => break Some(ended),
                    told = orders.wait_for(|told| told.drops > before.drops || told.cuts > 0) => {
                        told.map(|told| *told).unwrap_or_default()
                    }
                };
                if told.drops > before.drops {
                    break None;
                }
                self.orders.send_modify(|told| told.cuts = 0);
                connection.reconnect();
            };
            drop(run);
            self.broker.loses(number);
            self.broker.loses(connection.number());
            match ended {
                None => {}
                Some(Ok(_)) => return,
                Some(Err(error)) => {
                    let world = &self.broker.world;
                    let seen = format!("the consumer has ended: {error}");
                    world.log.broken(world.now(), Rule::NoMessageLost, "the inbox", 0, seen);
                    return;
                }
            }
        }
    }

    /// The handler: something slow, an effect, and something slow.
    async fn handles(&self, id: u64, mut random: Random) -> Result<(), Failed> {
        let (plan, world) = (&self.broker.plan, &self.broker.world);
        let clock = world.clock_of(self.life());
        let attempt = Context::current().attempt();
        if attempt > 1 {
            self.broker.note(self.life(), "a second attempt");
        }
        clock.sleep(millis_below(&mut random, plan.work)).await;
        if !world.is_calm() && random.chance(plan.fails) {
            return Err(Failed);
        }
        let panics = !world.is_calm() && random.chance(plan.panics);
        let is_before = random.chance(50);
        if panics && is_before {
            std::panic::resume_unwind(Box::new("on purpose"));
        }
        self.effects.lock().unwrap_or_else(PoisonError::into_inner).push(Effect { id, attempt });
        clock.sleep(millis_below(&mut random, plan.work)).await;
        if panics {
            std::panic::resume_unwind(Box::new("on purpose"));
        }
        Ok(())
    }
}

/// A connection that the process keeps beside its consumer.
struct Shared<const ORDER: u8>(Arc<Connection<ORDER>>);

impl<const ORDER: u8> idempotency::inbox::Source for Shared<ORDER> {
    type Message = Mail;
    type Error = super::broker::Lost;
    const ORDER: idempotency::inbox::Order = <Connection<ORDER>>::ORDER;

    async fn receive(&self, room: usize) -> Result<Vec<Arc<Mail>>, Self::Error> {
        self.0.receive(room).await
    }

    async fn settle(
        &self,
        settled: Vec<idempotency::inbox::Settled<Mail>>,
    ) -> Result<(), Self::Error> {
        self.0.settle(settled).await
    }

    fn patience(&self) -> Option<Duration> {
        self.0.patience()
    }

    async fn keep(&self, held: Vec<Arc<Mail>>) -> Result<(), Self::Error> {
        self.0.keep(held).await
    }

    fn hold_lane(&self, lane: u64, is_held: bool) {
        self.0.hold_lane(lane, is_held);
    }

    async fn stop(&self) -> Result<(), Self::Error> {
        self.0.stop().await
    }
}
