//! Two kinds of work that take turns.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The requirement for a ratio.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    AtMost(f64),
    AtLeast(f64),
    /// It is only reported.
    Told,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    pub path: String,
    pub reference: String,
    pub target: Target,
    /// The ratio of each round, or the only one.
    pub ratios: Vec<f64>,
    /// The times of both, in words.
    pub figures: String,
}

impl Row {
    pub fn new(path: &str, reference: &str, target: Target) -> Self {
        let (path, reference) = (path.to_owned(), reference.to_owned());
        Self { path, reference, target, ratios: Vec::new(), figures: String::new() }
    }

    /// Creates a row with a figure and no reference.
    pub fn figure(path: &str, figures: String) -> Self {
        Self { figures, ..Self::new(path, "–", Target::Told) }
    }

    pub fn ratio(&self) -> Option<f64> {
        median(&self.ratios)
    }

    pub fn is_met(&self) -> Option<bool> {
        match (self.target, self.ratio()?) {
            (Target::AtMost(limit), ratio) => Some(ratio <= limit),
            (Target::AtLeast(limit), ratio) => Some(ratio >= limit),
            (Target::Told, _) => None,
        }
    }

    /// Fills the row with `rounds` rounds, each of which has the subject's and the reference's
    /// figure.
    fn rounds(mut self, figures: &[(f64, f64)], unit: fn(f64) -> String) -> Self {
        self.ratios = figures.iter().map(|(subject, reference)| subject / reference).collect();
        let of = |part: fn(&(f64, f64)) -> f64| {
            let figures: Vec<f64> = figures.iter().map(part).collect();
            median(&figures).map(unit).unwrap_or_default()
        };
        self.figures =
            format!("{} : {}", of(|(subject, _)| *subject), of(|(_, reference)| *reference));
        self
    }
}

pub fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// Returns the value of `sorted` below which `share` of its values lie.
pub fn quantile(sorted: &[Duration], share: f64) -> Duration {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index of a list"
    )]
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// The size of a turn, and the number of turns for each.
#[derive(Clone, Copy)]
pub struct Turns {
    pub rounds: u32,
    pub calls: u32,
}

/// Numbers that no call has had before.
static NUMBERS: AtomicU64 = AtomicU64::new(1_000);

fn numbers(count: u32) -> std::ops::Range<u64> {
    let count = u64::from(count);
    let first = NUMBERS.fetch_add(count, Ordering::Relaxed);
    first..first + count
}

/// Compares the time of one call after another, by the median of each turn.
pub async fn latency<S, R, F, G>(
    row: Row,
    turns: Turns,
    subject: S,
    reference: R,
) -> anyhow::Result<Row>
where
    S: Fn(u64) -> F,
    R: Fn(u64) -> G,
    F: Future<Output = anyhow::Result<()>>,
    G: Future<Output = anyhow::Result<()>>,
{
    let figures = alternate(
        turns.rounds,
        async || median_time(&subject, turns.calls).await,
        async || median_time(&reference, turns.calls).await,
    )
    .await?;
    Ok(row.rounds(&figures, microseconds))
}

async fn median_time<S, F>(work: &S, calls: u32) -> anyhow::Result<f64>
where
    S: Fn(u64) -> F,
    F: Future<Output = anyhow::Result<()>>,
{
    let mut times = Vec::new();
    for number in numbers(calls) {
        let start = Instant::now();
        work(number).await?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(quantile(&times, 0.5).as_secs_f64())
}

/// Compares the rates, per second, that the turns of both return.
pub async fn rates(
    row: Row,
    rounds: u32,
    subject: impl AsyncFn() -> anyhow::Result<f64>,
    reference: impl AsyncFn() -> anyhow::Result<f64>,
) -> anyhow::Result<Row> {
    let figures = alternate(rounds, subject, reference).await?;
    Ok(row.rounds(&figures, per_second))
}

/// Lets both take turns, and returns what they do in each of `rounds` rounds.
async fn alternate<T>(
    rounds: u32,
    subject: impl AsyncFn() -> anyhow::Result<T>,
    reference: impl AsyncFn() -> anyhow::Result<T>,
) -> anyhow::Result<Vec<(T, T)>> {
    let mut figures = Vec::new();
    for round in 0..=rounds {
        let (of_subject, of_reference);
        if round % 2 == 0 {
            of_subject = subject().await?;
            of_reference = reference().await?;
        } else {
            of_reference = reference().await?;
            of_subject = subject().await?;
        }
        // The first round warms up.
        if round > 0 {
            figures.push((of_subject, of_reference));
        }
    }
    Ok(figures)
}

/// Compares the number of calls per second that `clients` tasks make.
pub async fn throughput<S, R, F, G>(
    row: Row,
    turns: Turns,
    clients: u64,
    subject: S,
    reference: R,
) -> anyhow::Result<Row>
where
    S: Fn(u64) -> F + Send + Sync + 'static,
    R: Fn(u64) -> G + Send + Sync + 'static,
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
    G: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let figures = take_turns(turns, subject, reference, clients, || Ok(Duration::ZERO)).await?;
    let rate = |(time, _): Taken| f64::from(turns.calls) / time.as_secs_f64();
    let figures: Vec<_> = figures.into_iter().map(|(s, r)| (rate(s), rate(r))).collect();
    Ok(row.rounds(&figures, per_second))
}

/// Compares the growth of `spent` per call, with `clients` tasks.
pub async fn processor<S, R, F, G>(
    row: Row,
    turns: Turns,
    clients: u64,
    spent: impl Fn() -> anyhow::Result<Duration>,
    subject: S,
    reference: R,
) -> anyhow::Result<Row>
where
    S: Fn(u64) -> F + Send + Sync + 'static,
    R: Fn(u64) -> G + Send + Sync + 'static,
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
    G: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let figures = take_turns(turns, subject, reference, clients, spent).await?;
    let per_call = |(_, spent): (Duration, Duration)| spent.as_secs_f64() / f64::from(turns.calls);
    let figures: Vec<_> = figures.into_iter().map(|(s, r)| (per_call(s), per_call(r))).collect();
    Ok(row.rounds(&figures, microseconds))
}

type Taken = (Duration, Duration);

/// Returns the time and the growth of `spent` of each turn.
async fn take_turns<S, R, F, G>(
    turns: Turns,
    subject: S,
    reference: R,
    clients: u64,
    spent: impl Fn() -> anyhow::Result<Duration>,
) -> anyhow::Result<Vec<(Taken, Taken)>>
where
    S: Fn(u64) -> F + Send + Sync + 'static,
    R: Fn(u64) -> G + Send + Sync + 'static,
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
    G: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let (subject, reference) = (Arc::new(subject), Arc::new(reference));
    alternate(
        turns.rounds,
        async || at_once(&subject, turns.calls, clients, &spent).await,
        async || at_once(&reference, turns.calls, clients, &spent).await,
    )
    .await
}

async fn at_once<S, F>(
    work: &Arc<S>,
    calls: u32,
    clients: u64,
    spent: &impl Fn() -> anyhow::Result<Duration>,
) -> anyhow::Result<Taken>
where
    S: Fn(u64) -> F + Send + Sync + 'static,
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let all = numbers(calls);
    let next = Arc::new(AtomicU64::new(all.start));
    let (before, start) = (spent()?, Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..clients {
        let (work, next, end) = (work.clone(), next.clone(), all.end);
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return anyhow::Ok(());
                }
                work(number).await?;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok((start.elapsed(), spent()?.saturating_sub(before)))
}

fn per_second(rate: f64) -> String {
    format!("{rate:.0}/s")
}

fn microseconds(seconds: f64) -> String {
    match seconds * 1e6 {
        micros if micros < 10.0 => format!("{:.0} ns", micros * 1e3),
        micros if micros < 10_000.0 => format!("{micros:.1} µs"),
        micros => format!("{:.1} ms", micros / 1e3),
    }
}
