//! The edge that the documentation of `idempotency::edge` shows does each job once.

use std::rc::Rc;

use idempotency::record::State;
use idempotency::store::MemoryStore;
use idempotency::{Error, ErrorKind, Idempotency};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use crate::effects::Effects;

#[path = "../../idempotent-runtime/src/edge/jobs.rs"]
#[expect(unreachable_pub, reason = "the documentation shows an edge as a library would export it")]
mod shown;

use shown::{Job, serve};

/// Two processes that do jobs from channels of their own, on the same store.
struct World {
    operator: Idempotency,
    channels: [mpsc::Sender<Job>; 2],
    effects: Rc<Effects>,
}

impl World {
    fn start() -> Self {
        let store = MemoryStore::new();
        let effects = Rc::new(Effects::default());
        let channels = [(); 2].map(|()| {
            let (sender, jobs) = mpsc::channel(8);
            let (engine, effects) = (Idempotency::new(store.clone()), effects.clone());
            // A job that begins with a question mark is not done.
            let work = async move |payload: Vec<u8>| {
                (!payload.starts_with(b"?")).then(|| effects.happen().to_string().into_bytes())
            };
            tokio::task::spawn_local(serve(engine, jobs, work));
            sender
        });
        Self { operator: Idempotency::new(store), channels, effects }
    }

    async fn send(&self, process: usize, id: &str, payload: &str) -> Result<Option<String>, Error> {
        let (reply, replied) = oneshot::channel();
        let job = Job { id: id.to_owned(), payload: payload.into(), reply };
        self.channels[process].send(job).await.expect("the process lives");
        let answer = replied.await.expect("each job is answered")?;
        Ok(answer.map(|answer| String::from_utf8(answer).expect("it is a number")))
    }
}

async fn in_a_world(test: impl AsyncFnOnce(World) -> Result<(), Error>) -> Result<(), Error> {
    LocalSet::new().run_until(async { test(World::start()).await }).await
}

#[tokio::test]
async fn a_job_that_is_sent_again_is_done_once_by_whichever_process() -> Result<(), Error> {
    in_a_world(async |world| {
        let again = tokio::join!(world.send(0, "a", "x"), world.send(1, "a", "x"));
        assert_eq!((again.0?.as_deref(), again.1?.as_deref()), (Some("1"), Some("1")));
        assert_eq!(world.send(0, "b", "x").await?.as_deref(), Some("2"));
        assert_eq!(world.send(1, "a", "x").await?.as_deref(), Some("1"));
        assert_eq!(world.effects.count(), 2);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_id_that_is_used_for_another_job_is_refused() -> Result<(), Error> {
    in_a_world(async |world| {
        world.send(0, "a", "x").await?;
        let refused = world.send(1, "a", "y").await.unwrap_err();
        assert_eq!((refused.kind(), world.effects.count()), (ErrorKind::Mismatch, 1));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_job_that_was_not_done_leaves_no_record() -> Result<(), Error> {
    in_a_world(async |world| {
        assert_eq!(world.send(0, "a", "?").await?, None);
        let record = world.operator.record("jobs", "a").inspect().await?;
        assert!(record.is_none(), "{record:?}");
        assert_eq!(world.send(1, "a", "x").await?.as_deref(), Some("1"));
        let record = world.operator.record("jobs", "a").inspect().await?;
        assert_eq!(record.map(|record| record.state), Some(State::Completed));
        Ok(())
    })
    .await
}
