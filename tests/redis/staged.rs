//! Large bodies, which are staged beside the record: each is one request's.

use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use idempotency::key::KeyHash;
use idempotency::store::{
    Checkpoint, Claim, ClaimOutcome, Commit, CrashPolicy, State, Store as _, Token, WriteOutcome,
};

use crate::commands::NEVER;
use crate::world::{DAY, World, is_commit, patient};

const OWNER: Token = Token::from_bits(7);
const KEY: KeyHash = KeyHash::from_bytes([7; 32]);

fn body(letter: u8) -> Bytes {
    vec![letter; 20_000].into()
}

fn claim() -> Claim {
    let mut claim = Claim::new(KEY, OWNER, "orders.fulfil".into());
    claim.policy = CrashPolicy::Resume;
    claim
}

/// A server that has forgotten its scripts makes the way of a request longer.
#[tokio::test]
async fn a_checkpoint_and_a_commit_that_are_on_their_way_at_once_do_not_stand_for_each_other()
-> anyhow::Result<()> {
    let world = World::patient().await?;
    let store = &world.direct;
    for round in 0..200 {
        assert!(matches!(store.claim(claim()).await?, ClaimOutcome::Granted(_)));
        world.server.command(&["SCRIPT", "FLUSH"]).await?;
        let checkpoint = store.checkpoint(Checkpoint::new(KEY, OWNER, 0, body(b'c')));
        let commit = store.complete(Commit::new(KEY, OWNER, body(b'r'), DAY));
        let (_, committed) = tokio::join!(checkpoint, commit);
        assert_eq!(committed?, WriteOutcome::Applied, "round {round}");
        let record = store.read(KEY).await?.expect("the record is there");
        assert_eq!(
            (record.state, record.body == body(b'r')),
            (State::Completed, true),
            "round {round}"
        );
        assert_eq!(&*record.operation, "orders.fulfil", "round {round}");
        world.server.command(&["FLUSHALL"]).await?;
    }
    Ok(())
}

/// The network brings the staging of a checkpoint once more, just before the script of the commit.
#[tokio::test]
async fn a_staging_that_arrives_again_is_no_result() -> anyhow::Result<()> {
    let world = World::patient().await?;
    world.warm_up().await?;
    let store = patient(&world.proxy.url(&world.server.url())).connect().await?;
    let first = Arc::new(Mutex::new(None));
    let (seen, address) = (first.clone(), world.server.address());
    world.proxy.every(
        move |request| {
            let mut first = seen.lock().unwrap_or_else(PoisonError::into_inner);
            if request.command() == "SET" && request.arguments().len() == 4 && first.is_none() {
                *first = Some(request.bytes().to_vec());
            }
            if let (true, Some(staging)) = (is_commit(request), &*first) {
                deliver(&address, staging);
            }
            false
        },
        NEVER,
    );
    store.claim(claim()).await?;
    assert_eq!(
        store.checkpoint(Checkpoint::new(KEY, OWNER, 0, body(b'c'))).await?,
        WriteOutcome::Applied
    );
    assert_eq!(
        store.complete(Commit::new(KEY, OWNER, body(b'r'), DAY)).await?,
        WriteOutcome::Applied
    );
    assert!(first.lock().unwrap_or_else(PoisonError::into_inner).is_some(), "nothing was staged");
    let record = store.read(KEY).await?.expect("the record is there");
    assert_eq!((record.state, record.body == body(b'r')), (State::Completed, true));
    Ok(())
}

fn deliver(address: &str, request: &[u8]) {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let mut answer = [0; 5];
    stream.write_all(request).unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+OK\r\n");
}
