//! Everybody who may get a value, asked one after the other.

use std::fmt::Debug;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use idempotency::record::{Resolution, State};
use idempotency::store::MemoryStore;
use idempotency::{Context, Error, ErrorKind, Idempotency, OnCrash, OnError, Verdict};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

const DAY: Duration = Duration::from_secs(86_400);

/// How long a condition may take to come true, in real time.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a test generates.
pub trait Stored: Clone + Debug + Serialize + DeserializeOwned {}

impl<T: Clone + Debug + Serialize + DeserializeOwned> Stored for T {}

/// An error that is stored in place of a result.
#[derive(Serialize, Deserialize)]
#[serde(bound = "T: Serialize + DeserializeOwned")]
enum Failure<T> {
    Own(T),
    #[serde(skip)]
    Guard(ErrorKind),
}

impl<T> From<Error> for Failure<T> {
    fn from(error: Error) -> Self {
        Self::Guard(error.kind())
    }
}

/// What somebody got: the value as it shows itself, which tells `-0.0` from `0.0`, or the kind of
/// the error.
pub type Answer = Result<String, ErrorKind>;

fn shown<T: Debug>(result: Result<T, Error>) -> Answer {
    result.map(|value| format!("{value:?}")).map_err(|error| error.kind())
}

/// Two engines on one store, which are two processes.
struct Processes {
    here: Idempotency,
    there: Idempotency,
}

/// What everybody gets of `value`, and who it was.
async fn answers<T: Stored>(value: &T) -> Vec<(&'static str, Answer)> {
    let store = MemoryStore::new();
    let processes =
        Processes { here: Idempotency::new(store.clone()), there: Idempotency::new(store) };
    let mut answers = results(&processes, value).await;
    answers.extend(errors(&processes, value).await);
    answers.extend(steps(&processes, value).await);
    answers.extend(questions(&processes, value).await);
    answers.push((OPERATOR, operators(&processes, value).await));
    answers
}

const OPERATOR: &str = "an operator's answer";

async fn results<T: Stored>(
    Processes { here, there }: &Processes,
    value: &T,
) -> Vec<(&'static str, Answer)> {
    let bodies = AtomicUsize::new(0);
    let call = async |engine: &Idempotency| {
        let call = engine.call("results", 1).ttl(DAY);
        shown(call.run(|| body(value, &bodies)).await)
    };
    let (owner, follower) = tokio::join!(call(here), call(here));
    let answers = vec![
        ("the owner", owner),
        ("a follower", follower),
        ("a replay", call(here).await),
        ("a replay elsewhere", call(there).await),
    ];
    assert_eq!(bodies.into_inner(), 1, "{value:?}");
    answers
}

async fn body<T: Stored>(value: &T, bodies: &AtomicUsize) -> Result<T, Error> {
    bodies.fetch_add(1, Ordering::Relaxed);
    // The follower comes.
    tokio::task::yield_now().await;
    Ok(value.clone())
}

async fn errors<T: Stored>(
    Processes { here, there }: &Processes,
    value: &T,
) -> Vec<(&'static str, Answer)> {
    let call = async |engine: &Idempotency| {
        let call = engine.call("errors", 1).ttl(DAY).on_error(OnError::Store);
        match call.run(|| async { Err::<(), _>(Failure::Own(value.clone())) }).await {
            Ok(()) => panic!("the body fails"),
            Err(Failure::Own(value)) => Ok(format!("{value:?}")),
            Err(Failure::Guard(kind)) => Err(kind),
        }
    };
    vec![
        ("the owner of a stored error", call(here).await),
        ("a replay of a stored error", call(there).await),
    ]
}

/// A step that ran in a process which died after it, and the same step where the call was resumed.
async fn steps<T: Stored>(
    Processes { here, there }: &Processes,
    value: &T,
) -> Vec<(&'static str, Answer)> {
    let mut seen = Vec::new();
    for (who, engine) in [("a step", here), ("a resumed step", there)] {
        let (reached, step) = (Notify::new(), OnceLock::new());
        let call = engine.call("steps", 1).ttl(DAY).on_crash(OnCrash::Resume);
        let run = call.run(|| async {
            let answer =
                Context::current().step("value", || async { Ok::<_, Error>(value.clone()) }).await;
            step.set(shown(answer)).expect("it is asked for once");
            reached.notify_one();
            std::future::pending::<Result<(), Error>>().await
        });
        dies(run, &reached).await;
        seen.push((who, step.into_inner().expect("the step is over")));
    }
    seen
}

/// Drops `call` when its body has said that it is as far as it gets.
async fn dies<T>(call: impl Future<Output = Result<T, Error>>, reached: &Notify) {
    tokio::select! {
        biased;
        () = reached.notified() => {}
        _ = call => panic!("the body has no end"),
    }
}

/// Says that it is there, and has no end.
async fn endless<T>(reached: &Notify) -> Result<T, Error> {
    reached.notify_one();
    std::future::pending().await
}

/// What the outside world says, and what a replay says after it.
async fn questions<T: Stored>(
    Processes { here, there }: &Processes,
    value: &T,
) -> Vec<(&'static str, Answer)> {
    let reached = Notify::new();
    let died =
        here.call("questions", 1).ttl(DAY).on_crash_verify(|_| async { Ok(Verdict::<T>::Unknown) });
    dies(died.run(|| endless(&reached)), &reached).await;
    let mut answers = Vec::new();
    for who in ["who asked", "a replay of what was asked"] {
        let question = |_| async { Ok(Verdict::Completed(value.clone())) };
        let call =
            there.call("questions", 1).ttl(DAY).settle(Duration::ZERO).on_crash_verify(question);
        answers.push((who, shown(call.run(|| async { panic!("it has run") }).await)));
    }
    answers
}

/// What an operator's answer is read as, or why it is refused.
async fn operators<T: Stored>(Processes { here, there }: &Processes, value: &T) -> Answer {
    let reached = Notify::new();
    dies(here.call("operators", 1).ttl(DAY).run(|| endless::<T>(&reached)), &reached).await;
    let record = there.record("operators", 1);
    // The claim of the dropped body is given up in the background.
    let in_doubt = async {
        loop {
            let view = record.inspect().await.expect("the store works").expect("there is a record");
            if view.state == State::InDoubt {
                break view;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let view = tokio::time::timeout(PATIENCE, in_doubt).await.expect("the record is in doubt");
    match record.resolve(&view, Resolution::completed(value.clone())).await {
        Err(error) => Err(error.kind()),
        Ok(()) => {
            shown(there.call("operators", 1).ttl(DAY).run(|| async { Ok(value.clone()) }).await)
        }
    }
}

/// Asserts that everybody gets the same, and returns it.
pub async fn one_answer<T: Stored>(value: &T) -> Answer {
    let answers = answers(value).await;
    let owner = answers[0].1.clone();
    assert!(matches!(owner, Ok(_) | Err(ErrorKind::Encode)), "{value:?}: {owner:?}");
    for (who, answer) in &answers {
        // Which type reads an operator's answer is not known when it is given.
        let is_unread = *who == OPERATOR && *answer == Err(ErrorKind::Decode) && owner.is_err();
        assert!(
            *answer == owner || is_unread,
            "{who} gets {answer:?} of {value:?}, the owner {owner:?}"
        );
    }
    owner
}
