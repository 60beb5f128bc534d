//! What a record says about the process that holds it, and about the trace of its call.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use idempotency::record::{RecordView, State, TraceContext};
use idempotency::store::{CrashPolicy, MemoryStore};
use idempotency::{Builder, ErrorAction, ErrorKind, Idempotency, OnCrash};

use crate::world::{DAY, LEASE, OPERATION, World};

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[expect(clippy::unnecessary_wraps, reason = "it is what a trace context returns")]
fn traced() -> Option<Arc<str>> {
    Some(TRACEPARENT.into())
}

async fn view(world: &World, key: u64) -> RecordView {
    world.engine.record(OPERATION, key).inspect().await.unwrap().expect("there is a record")
}

#[tokio::test]
async fn a_record_shows_which_process_holds_it_and_in_which_trace() {
    let world =
        World::with(|builder| builder.namespace("shop").instance("pod-7").trace_context(traced));
    let call = world.call(1).on_crash(OnCrash::Resume).version(3);
    call.run(|| async {
        let view = view(&world, 1).await;
        assert_eq!(view.state, State::InProgress);
        assert_eq!((&*view.namespace, &*view.holder), ("shop", "pod-7"));
        assert_eq!(view.trace.as_deref(), Some(TRACEPARENT));
        assert_eq!((view.policy, view.schema, view.checkpoints), (CrashPolicy::Resume, 3, 0));
        assert_eq!(view.lease_until.saturating_duration_since(view.created), LEASE);
        world.effect(1)
    })
    .await
    .unwrap();
    let view = view(&world, 1).await;
    assert_eq!((view.state, &*view.holder), (State::Completed, "pod-7"));
    assert_eq!(view.trace.as_deref(), Some(TRACEPARENT));
}

#[tokio::test]
async fn a_takeover_shows_the_process_that_took_over() {
    let world = World::with(|builder| builder.instance("pod-1").trace_context(traced));
    let left = world.call(1).on_crash(OnCrash::Retry).run(|| async {
        std::future::pending::<()>().await;
        world.effect(1)
    });
    tokio::select! {
        biased;
        _ = left => unreachable!("its body never ends"),
        () = std::future::ready(()) => {}
    }
    world.record_is(1, |record| record.is_some_and(|record| record.reason.is_some())).await;
    assert_eq!(&*view(&world, 1).await.holder, "pod-1", "the process that left it");

    let other = world.other_process_with(|builder| builder.instance("pod-2"));
    let call = other.call(1).on_crash(OnCrash::Retry);
    call.run(|| async { other.effect(1) }).await.unwrap();
    let view = view(&world, 1).await;
    assert_eq!((&*view.holder, view.trace, view.attempts), ("pod-2", None, 2));
}

#[tokio::test]
async fn a_record_in_doubt_shows_where_its_body_ran() {
    let world = World::with(|builder| builder.instance("pod-7"));
    let call = world.call(1).on_error(ErrorAction::Hold).run(|| async {
        world.effect(1)?;
        Err::<String, _>(anyhow::anyhow!("the provider did not answer"))
    });
    call.await.unwrap_err();
    let other = world.other_process_with(|builder| builder.instance("pod-8"));
    assert_eq!(other.charge(1).await.unwrap_err().kind(), ErrorKind::InDoubt);
    let view = view(&other, 1).await;
    assert_eq!((view.state, &*view.holder), (State::InDoubt, "pod-7"));
}

#[tokio::test]
async fn a_process_without_a_name_is_named_by_its_host_and_its_id() {
    let world = World::new();
    world.charge(1).await.unwrap();
    let (view, process) = (view(&world, 1).await, format!("/{}", std::process::id()));
    assert!(view.holder.ends_with(&process), "{}", view.holder);
    assert!((process.len() + 1..=64).contains(&view.holder.len()), "{}", view.holder);
    assert_eq!((&*view.namespace, view.trace), ("default", None));
}

#[tokio::test]
async fn a_name_that_no_record_can_keep_is_refused() {
    let named =
        |name: &str| Idempotency::builder(MemoryStore::new()).instance(name).build().map(drop);
    let long = "ö".repeat(33);
    for name in ["", "a\nb", "\u{7f}", "\u{85}", "a\0", &long] {
        let error = named(name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{name:?}");
        let text = error.to_string();
        let said = format!("`instance` has {} bytes", name.len());
        assert!(text.contains(&said) && text.contains("1 to 64"), "{text}");
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
    for name in ["x", "größe/7 🪑", &long[..64]] {
        named(name).unwrap();
    }
}

#[tokio::test]
async fn a_trace_context_that_no_record_can_keep_is_left_out() {
    let long = "x".repeat(65);
    for trace in ["", "a\nb", "\0", &long] {
        let trace: Arc<str> = trace.into();
        let world = World::with(|builder| builder.trace_context(move || Some(trace.clone())));
        assert_eq!(world.charge(1).await.unwrap(), "receipt 1.1");
        assert_eq!(view(&world, 1).await.trace, None);
    }
    let longest: Arc<str> = long[1..].into();
    let kept = longest.clone();
    let world = World::with(|builder| builder.trace_context(move || Some(kept.clone())));
    world.charge(1).await.unwrap();
    assert_eq!(view(&world, 1).await.trace, Some(longest));
}

/// Counts how often it is asked, and belongs to a library: it is no closure.
#[derive(Clone, Default)]
struct Counted(Arc<AtomicUsize>);

impl TraceContext for Counted {
    fn current(&self) -> Option<Arc<str>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[tokio::test]
async fn a_trace_context_is_asked_once_for_each_claim_and_not_for_a_result_at_hand() {
    let counted = Counted::default();
    let configure = |builder: Builder| builder.trace_context(counted.clone());
    let engine = configure(Idempotency::builder(MemoryStore::new())).build().unwrap();
    let charge = || engine.call(OPERATION, 1).ttl(DAY).run(async || anyhow::Ok(1));
    assert_eq!(charge().await.unwrap(), 1);
    assert_eq!(counted.0.load(Ordering::Relaxed), 1);
    assert_eq!(charge().await.unwrap(), 1);
    assert_eq!(counted.0.load(Ordering::Relaxed), 1, "the result was at hand");
}
