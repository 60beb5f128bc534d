//! The future of an annotated function is at most 256 bytes larger than the plain one, for each
//! level of nesting. What a store does is not in it, and is a few kilobytes by itself.

use idempotency::{Error, idempotent};

const ALLOWED: usize = 256;

struct Order {
    id: u64,
    bytes: [u8; 1024],
}

/// Stays in the future while it waits.
async fn hold(buffer: &mut [u8]) {
    tokio::task::yield_now().await;
    buffer[0] = 1;
}

mod plain {
    use super::{Error, Order, hold};

    pub(crate) async fn small(id: u64) -> Result<u64, Error> {
        tokio::task::yield_now().await;
        Ok(id)
    }

    pub(crate) async fn buffer(id: u64) -> Result<u64, Error> {
        let mut buffer = [0; 1024];
        hold(&mut buffer).await;
        Ok(id + u64::from(buffer[0]))
    }

    pub(crate) async fn two(id: u64) -> Result<u64, Error> {
        buffer(id).await
    }

    pub(crate) async fn three(id: u64) -> Result<u64, Error> {
        two(id).await
    }

    pub(crate) async fn owned(name: String, items: Vec<String>) -> Result<usize, Error> {
        tokio::task::yield_now().await;
        Ok(name.len() + items.len())
    }

    pub(crate) async fn large_argument(order: Order) -> Result<u8, Error> {
        tokio::task::yield_now().await;
        Ok(order.bytes[0])
    }
}

mod annotated {
    use super::{Error, Order, hold, idempotent};

    #[idempotent(key = id, ttl = "24h")]
    pub(crate) async fn small(id: u64) -> Result<u64, Error> {
        tokio::task::yield_now().await;
        Ok(id)
    }

    #[idempotent(key = id, ttl = "24h")]
    pub(crate) async fn buffer(id: u64) -> Result<u64, Error> {
        let mut buffer = [0; 1024];
        hold(&mut buffer).await;
        Ok(id + u64::from(buffer[0]))
    }

    #[idempotent(key = id, ttl = "24h")]
    pub(crate) async fn two(id: u64) -> Result<u64, Error> {
        buffer(id).await
    }

    #[idempotent(key = id, ttl = "24h")]
    pub(crate) async fn three(id: u64) -> Result<u64, Error> {
        two(id).await
    }

    #[idempotent(key = name, ttl = "24h")]
    pub(crate) async fn owned(name: String, items: Vec<String>) -> Result<usize, Error> {
        tokio::task::yield_now().await;
        Ok(name.len() + items.len())
    }

    #[idempotent(key = order.id, ttl = "24h")]
    pub(crate) async fn large_argument(order: Order) -> Result<u8, Error> {
        tokio::task::yield_now().await;
        Ok(order.bytes[0])
    }
}

fn assert_within<P, A>(what: &str, levels: usize, plain: &P, annotated: &A) {
    let (plain, annotated) = (size_of_val(plain), size_of_val(annotated));
    println!("{what}: plain {plain}, annotated {annotated}");
    assert!(
        annotated <= plain + levels * ALLOWED,
        "{what}: {annotated} bytes are more than {plain} and {levels} times {ALLOWED}"
    );
}

#[test]
fn a_small_body() {
    assert_within("small", 1, &plain::small(1), &annotated::small(1));
}

#[test]
fn a_buffer_across_an_await() {
    assert_within("buffer", 1, &plain::buffer(1), &annotated::buffer(1));
}

#[test]
fn two_and_three_levels() {
    assert_within("two", 2, &plain::two(1), &annotated::two(1));
    assert_within("three", 3, &plain::three(1), &annotated::three(1));
}

#[test]
fn owned_arguments() {
    assert_within(
        "owned",
        1,
        &plain::owned(String::new(), Vec::new()),
        &annotated::owned(String::new(), Vec::new()),
    );
}

#[test]
fn a_large_argument() {
    let order = || Order { id: 1, bytes: [0; 1024] };
    assert_within(
        "large argument",
        1,
        &plain::large_argument(order()),
        &annotated::large_argument(order()),
    );
}

#[test]
fn a_question_takes_no_room_before_it_is_asked() {
    #[idempotent(key = id, ttl = "24h", on_crash = verify(async |_| {
        let mut buffer = [0; 1024];
        hold(&mut buffer).await;
        Ok(idempotency::Verdict::Completed(id))
    }))]
    async fn buffers(id: u64) -> Result<u64, Error> {
        let mut buffer = [0; 1024];
        hold(&mut buffer).await;
        Ok(id + u64::from(buffer[0]))
    }
    assert_within("with a question", 1, &plain::buffer(1), &buffers(1));
}

/// Each with what it is in the function that has no annotation.
mod rare {
    use idempotency::Verdict;

    use super::{Error, Order, idempotent};

    #[idempotent(key = id, ttl = "24h", detach)]
    pub(crate) async fn detached(id: u64) -> Result<u64, Error> {
        tokio::task::yield_now().await;
        Ok(id)
    }

    #[idempotent(key = id, ttl = "24h", detach, on_crash = verify(async |_| Ok(Verdict::Completed(id))))]
    pub(crate) async fn detached_with_a_question(id: u64) -> Result<u64, Error> {
        tokio::task::yield_now().await;
        Ok(id)
    }

    #[idempotent(key = id, ttl = "24h", on_crash = verify(async |_| Ok(Verdict::Completed(id))))]
    pub(crate) async fn with_a_question(id: u64) -> Result<u64, Error> {
        tokio::task::yield_now().await;
        Ok(id)
    }

    #[idempotent(key = order.id, ttl = "24h", detach)]
    pub(crate) async fn large_detached(order: Order) -> Result<u8, Error> {
        tokio::task::yield_now().await;
        Ok(order.bytes[0])
    }

    #[idempotent(key = order.id, ttl = "24h", detach, on_crash = verify(async |_| Ok(Verdict::Completed(order.bytes[1]))))]
    pub(crate) async fn large_detached_with_a_question(order: Order) -> Result<u8, Error> {
        tokio::task::yield_now().await;
        Ok(order.bytes[0])
    }

    #[idempotent(key = order.id, ttl = "24h", on_crash = verify(async |_| Ok(Verdict::Completed(order.bytes[1]))))]
    pub(crate) async fn large_with_a_question(order: Order) -> Result<u8, Error> {
        tokio::task::yield_now().await;
        Ok(order.bytes[0])
    }
}

#[test]
fn a_detached_call() {
    assert_within("detached", 1, &plain::small(1), &rare::detached(1));
    let order = || Order { id: 1, bytes: [0; 1024] };
    assert_within(
        "large, detached",
        1,
        &plain::large_argument(order()),
        &rare::large_detached(order()),
    );
}

#[test]
fn a_call_with_a_question() {
    assert_within("with a question", 1, &plain::small(1), &rare::with_a_question(1));
    let order = || Order { id: 1, bytes: [0; 1024] };
    assert_within(
        "large, with a question",
        1,
        &plain::large_argument(order()),
        &rare::large_with_a_question(order()),
    );
}

#[test]
fn a_detached_call_with_a_question() {
    assert_within(
        "detached, with a question",
        1,
        &plain::small(1),
        &rare::detached_with_a_question(1),
    );
    let order = || Order { id: 1, bytes: [0; 1024] };
    let large = rare::large_detached_with_a_question(order());
    assert_within("large, detached, with a question", 1, &plain::large_argument(order()), &large);
}

#[cfg(all(
    feature = "memory",
    feature = "mysql",
    feature = "postgres",
    feature = "redis",
    feature = "sqlite"
))]
mod stores {
    use std::time::Duration;

    use idempotency::key::KeyHash;
    use idempotency::store::{
        Claim, Commit, MemoryStore, MySqlStore, PostgresStore, RedisStore, Release, Renewal,
        SqliteStore, Store, Token,
    };

    /// The engine asks for as much memory with each request. The largest is one of 3 120 bytes, and
    /// another compiler may add a quarter.
    const ALLOWED: usize = 3_900;

    fn assert_small(store: &impl Store) {
        let (key, token) = (KeyHash::from_bytes([7; 32]), Token::from_bits(1));
        let day = Duration::from_secs(86_400);
        let sizes = [
            ("claim", size_of_val(&store.claim(Claim::new(key, token, "payments.charge".into())))),
            ("renew", size_of_val(&store.renew(vec![Renewal::new(key, token, day)]))),
            (
                "complete",
                size_of_val(&store.complete(Commit::new(key, token, "receipt".into(), day))),
            ),
            ("release", size_of_val(&store.release(Release::new(key, token)))),
            ("read", size_of_val(&store.read(key))),
            ("watch", size_of_val(&store.watch(key))),
            ("fence", size_of_val(&store.fence(key, token))),
        ];
        println!("{}: {sizes:?}", store.name());
        for (request, size) in sizes {
            assert!(size <= ALLOWED, "{} of {} takes {size} bytes", request, store.name());
        }
    }

    #[test]
    fn of_memory() {
        assert_small(&MemoryStore::new());
    }

    #[tokio::test]
    async fn of_redis() {
        assert_small(
            &RedisStore::builder("redis://127.0.0.1:1/").build().expect("nobody is asked"),
        );
    }

    #[tokio::test]
    async fn of_postgres() {
        assert_small(
            &PostgresStore::builder("postgres://127.0.0.1:1/shop")
                .build()
                .expect("nobody is asked"),
        );
    }

    #[tokio::test]
    async fn of_mysql() {
        assert_small(
            &MySqlStore::builder("mysql://127.0.0.1:1/shop").build().expect("nobody is asked"),
        );
    }

    #[tokio::test]
    async fn of_sqlite() -> anyhow::Result<()> {
        let directory = tempfile::tempdir()?;
        assert_small(&SqliteStore::open(directory.path().join("records.db")).await?);
        Ok(())
    }
}
