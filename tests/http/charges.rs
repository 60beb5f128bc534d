//! A handler that charges, and its book: what it did is written down outside of the code under test, and stays when the
//! process is killed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use idempotency::Context;
use idempotency::http::IdempotencyKey;
use idempotency_test_support::effects::EffectLog;
use idempotency_test_support::worker::{AFTER_EFFECT, BEFORE_EFFECT, KillPoints};
use serde::{Deserialize, Serialize};

/// How long the handler takes, in milliseconds: half of it before the charge.
pub const TAKES: &str = "x-takes";

/// Begins the line of a process whose result came too late: its call had been taken over.
const OVERTAKEN: &str = "overtaken";

/// One run of the handler, which is also its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub key: String,
    pub receipt: String,
    pub process: u32,
    pub attempt: u32,
    /// When it began, by the machine's clock.
    pub began: SystemTime,
}

#[derive(Debug, Serialize, Deserialize)]
enum Line {
    Began(Run),
    Charged(Run),
}

/// What the book says of one key.
#[derive(Debug, Default)]
pub struct Entry {
    /// In the order in which they began.
    pub began: Vec<Run>,
    pub charged: Vec<Run>,
}

/// The book as it is read.
#[derive(Debug)]
pub struct Book {
    pub entries: BTreeMap<String, Entry>,
    /// The processes whose results were refused, each as often.
    pub overtaken: Vec<u32>,
}

impl Book {
    pub fn read(log: &EffectLog) -> anyhow::Result<Self> {
        let mut book = Self { entries: BTreeMap::new(), overtaken: Vec::new() };
        for line in log.lines()? {
            let (word, rest) = line.split_once(' ').with_context(|| format!("no entry: {line}"))?;
            if word == OVERTAKEN {
                book.overtaken.push(rest.parse()?);
                continue;
            }
            let entry = book.entries.entry(word.to_owned()).or_default();
            match serde_json::from_str(rest)? {
                Line::Began(run) => entry.began.push(run),
                Line::Charged(run) => entry.charged.push(run),
            }
        }
        Ok(book)
    }
}

/// Notes that a result of this process was refused.
pub fn overtaken(log: &EffectLog) {
    log.append(&format!("{OVERTAKEN} {}", std::process::id())).expect("the log takes a line");
}

pub fn routes(log: Arc<EffectLog>, points: KillPoints) -> Router {
    Router::new().route("/charge", post(charge)).with_state((log, points))
}

async fn charge(
    State((log, points)): State<(Arc<EffectLog>, KillPoints)>,
    key: IdempotencyKey,
    headers: HeaderMap,
) -> (StatusCode, Json<Run>) {
    let write = |line: Line| {
        let line = serde_json::to_string(&line).expect("a line is written");
        log.append(&format!("{} {line}", key.as_str())).expect("the log takes a line");
    };
    let takes = headers.get(TAKES).and_then(|value| value.to_str().ok()).and_then(|millis| millis.parse().ok());
    let half = Duration::from_millis(takes.unwrap_or_default()) / 2;
    let run = Run {
        key: key.as_str().to_owned(),
        receipt: uuid::Uuid::new_v4().to_string(),
        process: std::process::id(),
        attempt: Context::current().attempt(),
        began: SystemTime::now(),
    };

    write(Line::Began(run.clone()));
    tokio::time::sleep(half).await;
    points.reach(BEFORE_EFFECT).await;
    write(Line::Charged(run.clone()));
    points.reach(AFTER_EFFECT).await;
    tokio::time::sleep(half).await;
    (StatusCode::CREATED, Json(run))
}
