//! The world outside, where effects happen: it knows who made which, and says so when it is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idempotency::Context;
use idempotency::record::State;
use idempotency::store::Token;
use idempotency_test_support::history::Rule;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::body::Site;
use crate::life::Life;
use crate::log::{Effect, Entry};
use crate::plan::{Class, Key};
use crate::server::Grant;
use crate::world::World;

#[derive(Default)]
pub struct Outside(Mutex<Known>);

#[derive(Default)]
struct Known {
    effects: Vec<Effect>,
    at_work: BTreeMap<usize, AtWork>,
    works: usize,
    refused: BTreeSet<Token>,
}

struct AtWork {
    key: String,
    token: Token,
    life: Arc<Life>,
}

impl Outside {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_told_of(&self, work: AtWork) -> usize {
        let mut known = self.known();
        known.works += 1;
        let number = known.works;
        known.at_work.insert(number, work);
        number
    }

    /// The effects of a key in one retention.
    pub fn effects(&self, key: &str, retention: u32) -> Vec<Effect> {
        let known = self.known();
        known
            .effects
            .iter()
            .filter(|effect| effect.key == key && effect.retention == retention)
            .cloned()
            .collect()
    }

    /// The body of this owner says that nothing happened, while a step of it runs in a task.
    pub fn refuse(&self, owner: Token) {
        self.known().refused.insert(owner);
    }

    pub fn has_refused(&self, owner: Token) -> bool {
        self.known().refused.contains(&owner)
    }

    /// Whether a body of `key` may still have an effect that `but` did not begin.
    pub fn is_at_work(&self, key: &str, but: Option<Token>) -> bool {
        let known = self.known();
        known
            .at_work
            .values()
            .any(|work| work.key == key && Some(work.token) != but && !work.life.is_dead())
    }
}

/// A body, or the question about one, from its first poll until it is dropped.
pub struct Work {
    pub world: Arc<World>,
    pub life: Arc<Life>,
    pub context: Context,
    pub grant: Grant,
    token: Token,
    number: usize,
    /// In a task of its own, which may outlive the claim.
    is_aside: bool,
    fingerprint: Option<u64>,
    began: Duration,
    /// How long the call has spent in works like this, in milliseconds.
    spent: Arc<AtomicU64>,
}

impl Work {
    /// Begins in the process of `life`, and looks whether it may.
    pub fn begin(site: &Site, what: &'static str) -> Self {
        let context = Context::current();
        let Site { world, life, key, fingerprint, spent, .. } = site.clone();
        let (now, label) = (world.now(), world.server.name(context.key()));
        let acknowledged = life.acknowledged(context.key(), context.attempt());
        let token = acknowledged.map_or(Token::from_bits(0), |claim| claim.owner);
        let known = world.server.grant(token);
        let broken = match (acknowledged, &known) {
            (None, _) => Some((Rule::AcknowledgedBeforeBody, "without a claim".to_owned())),
            (Some(claim), _) if claim.sent != claim.owner => {
                Some((Rule::AcknowledgedBeforeBody, format!("by the claim of {:?}", claim.owner)))
            }
            (Some(_), None) => {
                Some((Rule::FailClosed, "although the store has granted nothing".to_owned()))
            }
            (Some(claim), Some(grant)) => {
                let waited = now.saturating_sub(claim.first_sent);
                let has_asked = grant.is_takeover && key.class.asks();
                (what == "body" && !has_asked && waited > world.plan.lease / 5 * 4).then(|| {
                    (Rule::AcknowledgedBeforeBody, format!("{waited:?} after its claim was sent"))
                })
            }
        };
        let grant = known.unwrap_or(Grant {
            key: label.clone(),
            retention: 0,
            attempt: 1,
            is_takeover: false,
        });
        if let Some((rule, seen)) = broken {
            world.log.broken(
                now,
                rule,
                &label,
                grant.retention,
                format!("a {what} began in {}, {seen}", life.name),
            );
        }
        let number =
            world.outside.is_told_of(AtWork { key: label.clone(), token, life: life.clone() });
        let sent = acknowledged.map_or(now, |claim| claim.first_sent);
        let (process, key) = (life.name.clone(), label);
        world.log.write(Entry::Began { at: now, work: number, process, key, token, sent, what });
        let is_aside = false;
        let work = Self {
            world,
            life,
            context,
            grant,
            token,
            number,
            is_aside,
            fingerprint,
            began: now,
            spent,
        };
        work.look();
        work
    }

    /// The same work in another task: it is at work until it is dropped, also when the body is
    /// over.
    pub fn aside(&self) -> Self {
        let (key, token, life) = (self.grant.key.clone(), self.token, self.life.clone());
        let number = self.world.outside.is_told_of(AtWork { key, token, life });
        self.copy(number)
    }

    fn copy(&self, number: usize) -> Self {
        Self {
            world: self.world.clone(),
            life: self.life.clone(),
            context: self.context.clone(),
            grant: self.grant.clone(),
            // What it takes is no time of the call's.
            spent: Arc::default(),
            number,
            is_aside: true,
            ..*self
        }
    }

    pub fn token(&self) -> Token {
        self.token
    }

    /// S7: who believes in its lease owns the record. The claim of a body that is over is nobody's
    /// belief any more.
    pub fn look(&self) {
        if self.is_aside || self.context.lease_lost() {
            return;
        }
        let record = self.world.server.record(self.context.key());
        let is_owner = |owner: Token| owner == self.token;
        if !record.as_ref().is_some_and(|it| it.state == State::InProgress && is_owner(it.owner)) {
            let seen = record.map_or_else(
                || "nobody".to_owned(),
                |it| format!("{:?} ({:?})", it.owner, it.state),
            );
            let seen = format!(
                "{:?} in {} believes in its lease, and the owner is {seen}",
                self.token, self.life.name
            );
            let (now, retention) = (self.world.now(), self.grant.retention);
            self.world.log.broken(now, Rule::OneOwner, &self.grant.key, retention, seen);
        }
    }

    /// Pauses on the clock of the process.
    pub async fn pause(&self, duration: Duration) {
        sleep(duration).await;
        self.life.goes_on().await;
        self.look();
    }

    /// As [`pause`](Self::pause), where the body may be over.
    pub async fn pause_aside(&self, duration: Duration) {
        sleep(duration).await;
        self.life.goes_on().await;
    }

    /// Asks for the fence, and shows it to a resource outside.
    pub async fn fence(&self) -> Result<(), idempotency::Error> {
        let fence = self.context.fence().await?;
        self.life.goes_on().await;
        let (at, key) = (self.world.now(), self.grant.key.clone());
        self.world.log.write(Entry::Fenced { at, key, token: self.token, fence });
        Ok(())
    }

    /// The effect, at once. The value is what the caller gets for it.
    pub async fn effect(&self, step: &'static str) -> String {
        self.life.goes_on().await;
        self.look();
        self.known_effect(step, None)
    }

    /// The effect at a provider that does nothing for a key which it knows. The request takes its
    /// time, and arrives also when its sender is gone.
    pub async fn charge(&self, there: Duration, back: Duration) -> String {
        self.life.goes_on().await;
        let key = self.provider_key();
        let (sender, answer) = oneshot::channel();
        let request = self.copy(0);
        tokio::spawn(async move {
            let _on_its_way = request.world.on_its_way();
            sleep(there).await;
            let value =
                request.charged(&key).unwrap_or_else(|| request.known_effect("", Some(key)));
            sleep(back).await;
            let _ = sender.send(value);
        });
        let value = answer.await.unwrap_or_default();
        self.life.goes_on().await;
        value
    }

    /// The key of all attempts. The provider, too, remembers it for the retention and no longer.
    pub fn provider_key(&self) -> String {
        format!("{}-{}", self.context.derive_key("provider"), self.grant.retention)
    }

    /// What the provider did for its key.
    pub fn charged(&self, key: &str) -> Option<String> {
        let known = self.world.outside.known();
        known
            .effects
            .iter()
            .find(|effect| effect.provider_key.as_deref() == Some(key))
            .map(|it| it.value.clone())
    }

    fn known_effect(&self, step: &'static str, provider_key: Option<String>) -> String {
        let mut known = self.world.outside.known();
        let effect = Effect {
            at: self.world.now(),
            process: self.life.name.clone(),
            key: self.grant.key.clone(),
            step,
            retention: self.grant.retention,
            token: self.token,
            attempt: self.grant.attempt,
            fingerprint: self.fingerprint,
            value: format!("e{}", known.effects.len() + 1),
            provider_key,
        };
        let value = effect.value.clone();
        self.world.log.write(Entry::Effect(effect.clone()));
        known.effects.push(effect);
        value
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if self.number > 0 {
            let spent = self.world.now().saturating_sub(self.began);
            self.spent
                .fetch_add(u64::try_from(spent.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
            self.world.outside.known().at_work.remove(&self.number);
            if !self.is_aside {
                self.world.log.write(Entry::Ended { at: self.world.now(), work: self.number });
            }
        }
    }
}

impl Class {
    fn asks(self) -> bool {
        matches!(self, Self::VerifyByKey | Self::VerifyWhenOver)
    }

    pub fn is_in_task(self) -> bool {
        matches!(self, Self::InTask | Self::InTaskResume)
    }
}

impl Key {
    /// As the log names it.
    pub fn label(&self) -> String {
        format!("{:?}-{}", self.class, self.number)
    }
}
