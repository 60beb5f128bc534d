//! How many commands a call takes, and which way bodies go.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures::future::join_all;
use idempotency::Error;
use idempotency_test_support::deadline::DEADLINE;
use idempotency_test_support::proxy::{Action, Fault, Moment};

use crate::world::{World, large};

/// For plans that only look.
pub const NEVER: Fault = Fault::new(Moment::BeforeRequest, Action::Close);

#[tokio::test]
async fn a_miss_takes_two_commands_and_a_hit_one_plain_set() -> anyhow::Result<()> {
    let world = World::patient().await?;
    world.warm_up().await?;
    let sets = Arc::new(Mutex::new(Vec::new()));
    let seen = sets.clone();
    world.proxy.every(
        move |request| {
            if request.command() == "SET" {
                let words =
                    request.arguments().into_iter().map(|word| word.escape_ascii().to_string());
                seen.lock().unwrap().push(words.collect::<Vec<_>>());
            }
            false
        },
        NEVER,
    );
    let before = world.proxy.requests();
    world.charge(1).await?;
    assert_eq!(world.proxy.requests() - before, 2, "a miss");
    world.charge(1).await?;
    assert_eq!(world.proxy.requests() - before, 3, "a hit");
    let sets = sets.lock().unwrap();
    assert_eq!(sets.len(), 2);
    for set in &*sets {
        assert_eq!((set.len(), &*set[2], &*set[3], &*set[4]), (6, "NX", "GET", "PX"));
    }
    assert_eq!(world.count(1), 1);
    Ok(())
}

#[tokio::test]
async fn sixty_four_duplicates_in_one_process_take_the_commands_of_one_call() -> anyhow::Result<()>
{
    let world = World::patient().await?;
    world.warm_up().await?;
    let before = world.proxy.requests();
    // All of them have called before the first answer is looked at.
    for receipt in join_all((0..64).map(|_| world.charge(1))).await {
        assert_eq!(receipt?, "receipt 1.1");
    }
    let commands = world.proxy.requests() - before;
    assert!(commands <= 3, "{commands} commands: {:?}", world.proxy.requests_by_command());
    assert_eq!(world.count(1), 1);
    Ok(())
}

#[tokio::test]
async fn a_body_over_8_kib_never_passes_through_a_script() -> anyhow::Result<()> {
    let world = World::patient().await?;
    let longest = Arc::new(AtomicUsize::new(0));
    let seen = longest.clone();
    world.proxy.every(
        move |request| {
            if request.command().starts_with("EVAL") {
                seen.fetch_max(request.bytes().len(), Ordering::SeqCst);
            }
            false
        },
        NEVER,
    );
    for (key, length) in [(1, 8_300), (2, 200_000)] {
        let body = "y".repeat(length);
        for _ in 0..2 {
            let answer = world.call(key).run(|| async {
                world.effect(key);
                Ok::<_, Error>(body.clone())
            });
            assert_eq!(answer.await?, body);
        }
        assert_eq!(world.count(key), 1);
    }
    let scripts = longest.load(Ordering::SeqCst);
    assert!((1..1_000).contains(&scripts), "the longest script call had {scripts} bytes");

    let small = "z".repeat(7_000);
    world.call(3).run(|| async { Ok::<_, Error>(small.clone()) }).await?;
    assert!(longest.load(Ordering::SeqCst) > 7_000, "a small body goes with the script");
    assert_eq!(world.server.command(&["DBSIZE"]).await?, "3", "no staged body is left behind");
    Ok(())
}

/// The staged body is removed between the two commands of a commit.
#[tokio::test]
async fn a_commit_whose_staged_body_is_missing_stages_it_again() -> anyhow::Result<()> {
    let world = World::patient().await?;
    world.warm_up().await?;
    let stagings = Arc::new(AtomicUsize::new(0));
    let (staged, address) = (stagings.clone(), world.server.address());
    let removed = AtomicUsize::new(0);
    world.proxy.every(
        move |request| {
            let arguments = request.arguments();
            if request.command() == "SET" && arguments.len() == 4 {
                staged.fetch_add(1, Ordering::SeqCst);
            }
            if crate::world::is_commit(request) && removed.fetch_add(1, Ordering::SeqCst) == 0 {
                remove(&address, arguments[3]);
            }
            false
        },
        NEVER,
    );
    for _ in 0..2 {
        let call = world.call(1).run(|| async {
            world.effect(1);
            Ok::<_, Error>(large())
        });
        assert_eq!(call.await?, large());
    }
    assert_eq!((world.count(1), stagings.load(Ordering::SeqCst)), (1, 2));
    Ok(())
}

fn remove(address: &str, key: &[u8]) {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let mut answer = [0; 4];
    let start = Instant::now();
    // On its way to the server, where it may be a moment later than this.
    while &answer != b":1\r\n" {
        assert!(start.elapsed() < DEADLINE, "the body was not staged");
        stream.write_all(&[b"UNLINK ", key, b"\r\n"].concat()).unwrap();
        stream.read_exact(&mut answer).unwrap();
    }
}
