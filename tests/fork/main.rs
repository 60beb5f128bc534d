//! A process that is forked from one that had an engine. The only test of its process: a fork has
//! the calling thread alone, and what other threads had locked stays locked.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _, pipe};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use fork::{Fork, fork, waitpid};
use idempotency::store::SqliteStore;
use idempotency::{Error, Idempotency};
use tokio::runtime::{Builder, Runtime};

const DAY: Duration = Duration::from_secs(86_400);
/// How long a child may take.
const LIMIT: Duration = Duration::from_secs(60);

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("the runtime starts")
}

async fn engine(folder: &Path) -> Result<Idempotency, Error> {
    Ok(Idempotency::new(
        SqliteStore::open(folder.join("records.db"))
            .await
            .map_err(anyhow::Error::from)
            .expect("it opens"),
    ))
}

/// Charges once, and says what came of it.
async fn charge(engine: &Idempotency, ledger: PathBuf, key: u64) -> String {
    let call = engine.call("payments.charge", key).ttl(DAY).run(async || {
        let mut ledger =
            OpenOptions::new().create(true).append(true).open(&ledger).expect("the ledger opens");
        writeln!(ledger, "charge {key}").expect("the ledger takes it");
        Ok::<_, Error>(format!("receipt {key}"))
    });
    call.await.unwrap_or_else(|error| error.to_string())
}

/// What `work` says in a child of this process.
fn in_child(work: impl FnOnce() -> String) -> anyhow::Result<String> {
    let (mut reader, mut writer) = pipe()?;
    match fork()? {
        Fork::Child => {
            let _ = writer.write_all(work().as_bytes());
            drop(writer);
            std::process::exit(0)
        }
        Fork::Parent(child) => {
            drop(writer);
            let (says, hears) = channel();
            thread::spawn(move || {
                let mut said = String::new();
                let _ = says.send(reader.read_to_string(&mut said).map(|_| said));
            });
            let said = hears.recv_timeout(LIMIT);
            if said.is_err() {
                let _ = Command::new("kill").args(["-KILL", &child.to_string()]).status();
            }
            waitpid(child)?;
            Ok(said.context("the child says nothing, and was ended")??)
        }
    }
}

#[test]
fn the_engine_of_its_parent_asks_nothing_in_a_fork_and_one_of_its_own_works() -> anyhow::Result<()>
{
    let folder = tempfile::tempdir()?;
    let ledger = folder.path().join("ledger");
    let parent = runtime();
    let engine_of_parent = parent.block_on(engine(folder.path()))?;
    assert_eq!(parent.block_on(charge(&engine_of_parent, ledger.clone(), 1)), "receipt 1");

    for key in [1, 2] {
        let said = in_child(|| runtime().block_on(charge(&engine_of_parent, ledger.clone(), key)))?;
        assert!(said.contains("payments.charge") && said.contains("was forked"), "{said}");
        let said = in_child(|| {
            let looked =
                runtime().block_on(engine_of_parent.record("payments.charge", key).inspect());
            looked.map_or_else(|error| error.to_string(), |_| "an answer".to_owned())
        })?;
        assert!(said.contains("was forked"), "{said}");
    }
    let own = in_child(|| {
        runtime().block_on(async {
            let own = engine(folder.path()).await.expect("the store opens");
            let replayed = charge(&own, ledger.clone(), 1).await;
            format!("{replayed}, {}", charge(&own, ledger.clone(), 2).await)
        })
    })?;
    assert_eq!(own, "receipt 1, receipt 2");
    assert_eq!(parent.block_on(charge(&engine_of_parent, ledger.clone(), 2)), "receipt 2");
    assert_eq!(std::fs::read_to_string(ledger)?, "charge 1\ncharge 2\n");
    Ok(())
}
