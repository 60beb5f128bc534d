use std::time::Duration;

use idempotency::edge::{EdgeCall, EdgeOutcome, EdgeResult, End};
use idempotency::key::{Fingerprint, Key};
use idempotency::{Error, Idempotency};
use tokio::sync::{mpsc, oneshot};

/// A job, which its producer may send again with the same ID.
pub struct Job {
    pub id: String,
    pub payload: Vec<u8>,
    /// Gets the answer; `None` if the job was not done, and may be sent again.
    pub reply: oneshot::Sender<Result<Option<Vec<u8>>, Error>>,
}

/// Does each job once. `work` returns `None` if it has done nothing.
pub async fn serve(
    engine: Idempotency,
    mut jobs: mpsc::Receiver<Job>,
    work: impl AsyncFn(Vec<u8>) -> Option<Vec<u8>>,
) {
    while let Some(Job { id, payload, reply }) = jobs.recv().await {
        // A producer that no longer waits sends the job again.
        let _ = reply.send(answer(&engine, &id, payload, &work).await);
    }
}

async fn answer(
    engine: &Idempotency,
    id: &str,
    payload: Vec<u8>,
    work: impl AsyncFn(Vec<u8>) -> Option<Vec<u8>>,
) -> Result<Option<Vec<u8>>, Error> {
    let call = EdgeCall::new(engine, "jobs", Key::of(id), Duration::from_secs(86_400))
        .fingerprint(Fingerprint::of(&payload)?);
    let body = async |_| match work(payload).await {
        Some(answer) => (Some(answer.clone()), EdgeResult::completed(answer).into()),
        None => (None, End::Released),
    };
    match call.run(body).await {
        EdgeOutcome::Executed(answer) | EdgeOutcome::Unprotected(answer) => Ok(answer),
        EdgeOutcome::Replayed { result, .. } => Ok(Some(result.into_bytes().into())),
        EdgeOutcome::Lost { error, .. } | EdgeOutcome::Refused { error, .. } => Err(error),
    }
}
