//! Two servers on one Redis, killed and started again at random under many clients that retry: the
//! failure table, cell by cell. `IDEMPOTENCY_SEED` repeats the choices of a run; how its requests
//! meet is not repeated.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use idempotency::record::{RecordView, State as RecordState};
use idempotency_test_support::deadline::DEADLINE;
use idempotency_test_support::random::{Random, seed};
use idempotency_test_support::server::{RedisOptions, RedisServer};
use idempotency_test_support::worker::{
    AFTER_CLAIM, AFTER_COMMIT, AFTER_EFFECT, AFTER_SEND, BEFORE_COMMIT, BEFORE_EFFECT, BEFORE_SEND,
};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::charges::{Entry, Run, TAKES, all_overtaken};
use crate::client::{Client, Reply};
use crate::process::{Orders, Policy, Process};

const SERVERS: usize = 2;
const REQUESTS_OF_A_KEY: usize = 10;
/// How many requests are with a server at once. Those that wait for their next try are with none.
const AT_ONCE: usize = 6;
/// Long enough that a busy machine does not miss its renewals, for the claims of those that live;
/// those of the dead end.
const LEASE: Duration = Duration::from_secs(9);
/// What is left of its lease at least when a handler begins: no body starts when 80 % of it is
/// over.
const LEFT_AT_LEAST: Duration = Duration::from_millis(1_800);
/// How long a client asks before the test fails.
const PATIENCE: Duration = Duration::from_secs(10 * DEADLINE.as_secs());

/// Where servers are killed; the others of their requests may be anywhere.
const POINTS: [&str; 7] = [
    AFTER_EFFECT,
    BEFORE_EFFECT,
    AFTER_COMMIT,
    AFTER_CLAIM,
    BEFORE_COMMIT,
    BEFORE_SEND,
    AFTER_SEND,
];
/// Those at which the handler runs.
const IN_THE_HANDLER: [&str; 2] = [AFTER_EFFECT, BEFORE_EFFECT];

/// How many keys there are, and how often each server is killed.
fn size() -> (usize, usize) {
    if std::env::var_os("IDEMPOTENCY_LONG").is_some() { (1_000, 70) } else { (100, 7) }
}

/// A server that was killed, and the point at which one of its requests was.
#[derive(Debug)]
struct Death {
    process: u32,
    point: &'static str,
}

struct Fleet {
    orders: Orders,
    /// The servers that live.
    servers: Mutex<[Option<Client>; SERVERS]>,
    places: Semaphore,
    sent: AtomicUsize,
    deaths: watch::Sender<usize>,
    /// All requests are answered.
    is_over: watch::Sender<bool>,
}

/// What a client sends until it is answered.
struct Planned {
    key: String,
    millis: u64,
    random: Random,
}

impl Fleet {
    fn new(orders: Orders) -> Self {
        Self {
            orders,
            servers: Mutex::new([const { None }; SERVERS]),
            places: Semaphore::new(AT_ONCE),
            sent: AtomicUsize::new(0),
            deaths: watch::Sender::new(0),
            is_over: watch::Sender::new(false),
        }
    }

    fn put(&self, place: usize, server: Option<Client>) {
        self.servers.lock().expect("nobody panics with the servers")[place] = server;
    }

    fn server(&self, random: &mut Random) -> Option<Client> {
        let servers = self.servers.lock().expect("nobody panics with the servers");
        let living: Vec<_> = servers.iter().flatten().collect();
        let chosen = random.below(living.len() as u64);
        living.into_iter().nth(usize::try_from(chosen).unwrap_or_default()).cloned()
    }

    /// Keeps a server in one place, and kills it `kills` times.
    async fn keep(
        &self,
        place: usize,
        kills: usize,
        mut random: Random,
    ) -> anyhow::Result<Vec<Death>> {
        let mut deaths = Vec::new();
        // Each point once, the handler's first, and then any.
        let mut points: Vec<_> =
            POINTS.into_iter().skip(place).chain(POINTS.into_iter().take(place)).rev().collect();
        let mut is_over = self.is_over.subscribe();
        loop {
            let point = (deaths.len() < kills).then(|| {
                let any = || {
                    POINTS[usize::try_from(random.below(POINTS.len() as u64)).unwrap_or_default()]
                };
                points.pop().unwrap_or_else(any)
            });
            let mut server = Process::start(&self.orders, point.as_slice()).await?;
            self.put(place, Some(server.client().clone()));
            let reached = async {
                match point {
                    Some(point) => pass(&mut server, 1 + random.below(3)).await.map(|()| point),
                    None => std::future::pending().await,
                }
            };
            let point = tokio::select! {
                point = reached => point?,
                _ = is_over.wait_for(|is_over| *is_over) => return Ok(deaths),
            };
            self.put(place, None);
            let process = server.pid();
            server.kill().await?;
            deaths.push(Death { process, point });
            self.deaths.send_modify(|deaths| *deaths += 1);
        }
    }

    /// Sends until there is an answer that no further try would change.
    async fn ask(self: Arc<Self>, mut planned: Planned) -> anyhow::Result<(String, Reply)> {
        let mut pause = Duration::from_millis(10);
        loop {
            if let Some(server) = self.server(&mut planned.random) {
                let place = self.places.acquire().await?;
                self.sent.fetch_add(1, Ordering::Relaxed);
                let request = server
                    .post("/charge")
                    .key(&planned.key)
                    .header(TAKES, planned.millis.to_string());
                // Without an answer, its server was killed.
                let reply = request.send().await.ok();
                drop(place);
                if let Some(reply) = reply {
                    match reply.status {
                        409 if reply.problem()? == "in-progress" => {}
                        // So late on a busy machine that most of the lease was over.
                        503 => reply.assert_problem(503, "unavailable")?,
                        _ => return Ok((planned.key, reply)),
                    }
                }
            }
            tokio::time::sleep(pause / 2 + planned.random.duration_below(pause)).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    /// All requests of all keys, and their answers. The next keys come after each death, and when
    /// all are answered.
    async fn drive(
        self: &Arc<Self>,
        keys: usize,
        kills: usize,
        mut random: Random,
    ) -> anyhow::Result<Answers> {
        let (mut answers, mut asking) = (Answers::new(), JoinSet::new());
        let mut deaths = self.deaths.subscribe();
        let each = keys.div_ceil(SERVERS * kills + 1);
        for first in (0..keys).step_by(each) {
            deaths.mark_unchanged();
            let together = first..keys.min(first + each);
            // Those of one key meet, and others come between them.
            let mut planned: Vec<_> = together.flat_map(|key| [key; REQUESTS_OF_A_KEY]).collect();
            planned.sort_by_cached_key(|_| random.bits());
            for key in planned {
                let planned =
                    Planned { key: name(key), millis: random.below(20), random: random.fork() };
                asking.spawn(tokio::time::timeout(PATIENCE, self.clone().ask(planned)));
            }
            loop {
                tokio::select! {
                    answered = asking.join_next() => match answered {
                        Some(answered) => note(&mut answers, answered???),
                        None => break,
                    },
                    another = deaths.changed() => break another?,
                }
            }
        }
        while let Some(answered) = asking.join_next().await {
            note(&mut answers, answered???);
        }
        self.is_over.send_replace(true);
        Ok(answers)
    }

    /// What one more client of each key is told in the end.
    async fn last(
        self: &Arc<Self>,
        keys: usize,
        mut random: Random,
    ) -> anyhow::Result<BTreeMap<String, Reply>> {
        let server = Process::start(&self.orders, &[]).await?;
        self.put(0, Some(server.client().clone()));
        let mut asking = JoinSet::new();
        for key in 0..keys {
            let planned = Planned { key: name(key), millis: 0, random: random.fork() };
            asking.spawn(tokio::time::timeout(PATIENCE, self.clone().ask(planned)));
        }
        let mut last = BTreeMap::new();
        while let Some(answered) = asking.join_next().await {
            last.extend([answered???]);
        }
        Ok(last)
    }
}

fn name(key: usize) -> String {
    format!("key-{key}")
}

/// What the clients of each key were told, and when at the latest.
type Answers = BTreeMap<String, Vec<(Reply, SystemTime)>>;

fn note(answers: &mut Answers, (key, reply): (String, Reply)) {
    answers.entry(key).or_default().push((reply, SystemTime::now()));
}

/// Lets the server's requests pass its point until one of them is the `nth` there, which waits.
async fn pass(server: &mut Process, nth: u64) -> anyhow::Result<()> {
    for number in 1..=nth {
        // Nobody may come this way for as long as a lease, or longer.
        loop {
            if let Ok(reached) =
                tokio::time::timeout(DEADLINE / 2, server.worker().next_point()).await
            {
                reached?;
                break;
            }
        }
        if number < nth {
            server.worker().go().await?;
        }
    }
    Ok(())
}

/// Whether the lease of a run can be over at this time.
fn is_over(run: &Run, at: SystemTime) -> bool {
    at.duration_since(run.began).is_ok_and(|since| since >= LEFT_AT_LEAST)
}

/// All that is known of one key when all is over.
struct Key {
    entry: Entry,
    answers: Vec<(Reply, SystemTime)>,
    last: Reply,
    record: RecordView,
}

impl Key {
    /// The run whose result all callers get.
    fn winner(&self) -> Option<&Run> {
        let told: Run = serde_json::from_slice(&self.last.body).ok()?;
        self.entry.charged.iter().find(|run| **run == told)
    }

    fn is_in_doubt(&self) -> bool {
        self.record.state == RecordState::InDoubt
    }

    /// The charges that are not what callers were told of.
    fn lost(&self) -> impl Iterator<Item = &Run> {
        let winner = self.winner();
        self.entry.charged.iter().filter(move |run| Some(*run) != winner)
    }

    fn began_only(&self) -> impl Iterator<Item = &Run> {
        self.entry.began.iter().filter(|run| !self.entry.charged.contains(run))
    }

    /// Claims whose handler did not begin.
    fn without_run(&self) -> usize {
        usize::try_from(self.record.attempts)
            .unwrap_or_default()
            .saturating_sub(self.entry.began.len())
    }
}

/// What happened, and who died.
struct Story {
    policy: Policy,
    keys: BTreeMap<String, Key>,
    deaths: Vec<Death>,
    overtaken: usize,
}

impl Story {
    fn has_died(&self, run: &Run) -> bool {
        self.deaths.iter().any(|death| death.process == run.process)
    }

    /// One key and the cell of the table in which it is.
    fn check(&self, key: &Key) -> anyhow::Result<()> {
        let Key { entry, answers, last, record } = key;
        ensure!(answers.len() == REQUESTS_OF_A_KEY, "{} answers", answers.len());
        ensure!(
            entry.charged.iter().all(|run| entry.began.contains(run)),
            "a charge without its run"
        );
        for (answer, _) in answers.iter().filter(|(answer, _)| answer.status == 201) {
            ensure!(answer.answer() == last.answer(), "{answer:?} and {last:?}");
            let expires =
                |reply: &Reply| reply.header("idempotency-key-expires").map(str::to_owned);
            ensure!(expires(answer) == expires(last), "{answer:?} and {last:?}");
        }
        let refusals: Vec<_> = answers.iter().filter(|(answer, _)| answer.status != 201).collect();
        for (refusal, at) in &refusals {
            refusal.assert_problem(409, "uncertain")?;
            ensure!(
                entry.began.iter().all(|run| is_over(run, *at)),
                "told before the lease was over"
            );
        }
        let is_late = |runs: &[Run]| is_over(&runs[0], runs[1].began);
        ensure!(entry.began.windows(2).all(is_late), "taken over before the lease was over");
        if self.policy == Policy::Hold {
            ensure!(record.attempts == 1 && entry.began.len() <= 1, "nobody runs it again");
        }
        if key.is_in_doubt() {
            ensure!(self.policy == Policy::Hold, "in doubt under {:?}", self.policy);
            last.assert_problem(409, "uncertain")?;
            ensure!(refusals.len() == answers.len(), "an answer, and now it is in doubt");
            ensure!(entry.charged.len() <= 1, "{} charges", entry.charged.len());
            ensure!(
                entry.began.iter().all(|run| self.has_died(run)),
                "in doubt, and its owner lives"
            );
            return Ok(());
        }
        ensure!(record.state == RecordState::Completed && last.is_replayed(), "{last:?}");
        let winner = key.winner().with_context(|| format!("nobody charged for {last:?}"))?;
        ensure!(winner.attempt == record.attempts, "attempt {} has the result", winner.attempt);
        // An owner that stands still for longer than its lease settles the doubt when it goes on.
        ensure!(
            refusals.is_empty() || (self.policy == Policy::Hold && !self.has_died(winner)),
            "{refusals:?}"
        );
        ensure!(key.began_only().all(|run| self.has_died(run)), "a run that lives has no charge");
        let of_the_dead = key.lost().filter(|run| self.has_died(run)).count();
        let of_the_late = key.lost().filter(|run| !self.has_died(run)).count();
        ensure!(
            of_the_late <= self.overtaken,
            "a charge of a process that lives and was not overtaken"
        );
        ensure!(
            entry.charged.len() == 1 + of_the_dead + of_the_late,
            "{} charges",
            entry.charged.len()
        );
        Ok(())
    }

    /// Whether what the server left that died is what the table says of its point.
    fn shows(&self, death: &Death) -> bool {
        let by = |run: &Run| run.process == death.process;
        let mut keys = self.keys.values();
        match death.point {
            BEFORE_EFFECT => keys.any(|key| key.began_only().any(by)),
            AFTER_EFFECT | BEFORE_COMMIT => keys.any(|key| key.lost().any(by)),
            AFTER_COMMIT => keys.any(|key| key.winner().is_some_and(by)),
            // What was on its way arrived, or not.
            _ => true,
        }
    }
}

impl Story {
    fn check_all(&self) -> anyhow::Result<()> {
        for (name, key) in &self.keys {
            let Key { entry, record, .. } = key;
            self.check(key).with_context(|| format!("{name}: {entry:?}, {record:?}"))?;
        }
        for death in &self.deaths {
            ensure!(self.shows(death), "no key was left by {death:?}");
        }
        let at = |points: &[&str]| {
            self.deaths.iter().filter(|death| points.contains(&death.point)).count()
        };
        let without_run: usize = self.keys.values().map(Key::without_run).sum();
        ensure!(without_run >= at(&[AFTER_CLAIM]), "{without_run} claims have no run");
        ensure!(at(&IN_THE_HANDLER) >= SERVERS, "killed in the handler: {:?}", self.deaths);
        Ok(())
    }
}

async fn run(policy: Policy) -> anyhow::Result<()> {
    let (keys, kills) = size();
    let seed = seed();
    println!("IDEMPOTENCY_SEED={seed}");
    let mut random = Random::new(seed);
    let redis = RedisServer::start(RedisOptions::new().private()).await?;
    let orders = Orders::new(redis.url())?.with(policy, LEASE);
    let book = orders.book().await?;
    let fleet = Arc::new(Fleet::new(orders.clone()));
    let (mut deaths, more, answers) = tokio::try_join!(
        fleet.keep(0, kills, random.fork()),
        fleet.keep(1, kills, random.fork()),
        fleet.drive(keys, kills, random.fork()),
    )?;
    deaths.extend(more);
    let last = fleet.last(keys, random).await?;
    println!(
        "{} requests sent, {} servers killed",
        fleet.sent.load(Ordering::Relaxed),
        deaths.len()
    );

    let late = |process: &u32| deaths.iter().all(|death| death.process != *process);
    let overtaken = all_overtaken(&orders.log()?)?.into_iter().filter(late).count();
    let engine = orders.engine().await?;
    let (mut entries, mut answers, mut all) = (book.entries().await?, answers, BTreeMap::new());
    for (name, last) in last {
        let record = engine.record("http", name.as_str()).inspect().await?;
        let record = record.with_context(|| format!("{name} has no record"))?;
        let entry = entries.remove(&name).unwrap_or_default();
        let answers = answers.remove(&name).unwrap_or_default();
        all.insert(name, Key { entry, answers, last, record });
    }
    ensure!(entries.is_empty() && all.len() == keys, "charges of other keys: {entries:?}");
    let story = Story { policy, keys: all, deaths, overtaken };
    let in_doubt = story.keys.values().filter(|key| key.is_in_doubt()).count();
    let charges: usize = story.keys.values().map(|key| key.entry.charged.len()).sum();
    println!("{keys} keys: {charges} charges, {in_doubt} in doubt; {:?}", story.deaths);
    story.check_all()
}

#[tokio::test]
async fn under_hold_a_fleet_that_is_killed_at_random_charges_what_the_table_says()
-> anyhow::Result<()> {
    run(Policy::Hold).await
}

#[tokio::test]
async fn under_retry_a_fleet_that_is_killed_at_random_charges_what_the_table_says()
-> anyhow::Result<()> {
    run(Policy::Retry).await
}
