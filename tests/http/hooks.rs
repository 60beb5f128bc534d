//! Functions of the service and of the client that panic, or that ask for what they may not have:
//! they come after the guards, and change no outcome.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, Request, Response};
use axum::routing::post;
use idempotency::http::client::{ClientError, ClientLayer, Sent};
use idempotency::http::{IdempotencyLayer, KeyFormat, OnStatus, RequestFingerprint, Scope};
use idempotency::store::{MemoryStore, Operation, StoreErrorKind};
use idempotency::testing::{Fault, ManualClock};
use idempotency::{Context, Idempotency, OnCrash, Verdict};
use idempotency_test_support::deadline::eventually_async;
use tower::{Layer as _, ServiceExt as _};

use crate::scripted::{Scripted, Step, Strict, answer, answer_with, client, layer, send};
use crate::security::log;
use crate::world::{NO_PATIENCE, PATIENCE, Shop, World};

/// Panics as long as it is asked to.
#[derive(Clone)]
struct Trap(Arc<AtomicBool>);

impl Trap {
    fn set() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    fn spring(&self) {
        assert!(!self.0.load(Ordering::SeqCst), "the test asked for it");
    }

    fn remove(&self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

async fn charge_and_panic(State(shop): State<Shop>) -> Response<Body> {
    shop.effect("charged");
    panic!("the test asked for it");
}

/// A layer with one function that springs the trap.
type Trapped = fn(IdempotencyLayer, Trap) -> IdempotencyLayer;

#[tokio::test]
async fn a_function_that_panics_before_the_handler_refuses_the_request_and_leaves_the_key_free()
-> anyhow::Result<()> {
    let trapped: [Trapped; 3] = [
        |layer, trap| {
            layer.with_key_format(KeyFormat::matching(move |_| {
                trap.spring();
                true
            }))
        },
        |layer, trap| {
            layer.with_key_from_body("/id").with_key_format(KeyFormat::matching(move |_| {
                trap.spring();
                true
            }))
        },
        |layer, trap| {
            layer.with_fingerprint(RequestFingerprint::custom(move |_, body| {
                trap.spring();
                body.to_vec()
            }))
        },
    ];
    for trapped in trapped {
        let trap = Trap::set();
        let its_trap = trap.clone();
        let world = World::with(move |layer| trapped(layer, its_trap)).await?;
        let pay = || world.pay("abc").body(r#"{"id": "abc"}"#).send();
        pay().await?.assert_problem(500, "internal")?;
        assert_eq!((world.effects("abc"), world.records().await?), (0, 0));
        trap.remove();
        assert_eq!(pay().await?.status, 201);
        let (_, retry) = (pay().await?, pay().await?);
        assert_eq!((retry.status, retry.is_replayed(), world.effects("abc")), (201, true, 1));
    }
    Ok(())
}

#[tokio::test]
async fn a_scope_that_panics_refuses_the_request_and_leaves_the_key_free() -> anyhow::Result<()> {
    let trap = Trap::set();
    let its_trap = trap.clone();
    let scope = Scope::of(move |_| {
        its_trap.spring();
        Some("one")
    });
    let world = World::setup().scope(scope).start().await?;
    world.pay("abc").send().await?.assert_problem(500, "internal")?;
    assert_eq!((world.effects("abc"), world.records().await?), (0, 0));
    trap.remove();
    assert_eq!(world.pay("abc").send().await?.status, 201);
    assert_eq!((world.pay("abc").send().await?.is_replayed(), world.effects("abc")), (true, 1));
    Ok(())
}

#[tokio::test]
async fn a_function_that_panics_refuses_the_question_for_a_state_and_no_other() -> anyhow::Result<()>
{
    let (format, scope) = (Trap::set(), Trap::set());
    let (its_format, its_scope) = (format.clone(), scope.clone());
    let engine = Idempotency::new(MemoryStore::new());
    let of_everybody = Scope::of(move |_| {
        its_scope.spring();
        Some("one")
    });
    let layer = IdempotencyLayer::new(engine.clone(), of_everybody).with_key_format(
        KeyFormat::matching(move |_| {
            its_format.spring();
            true
        }),
    );
    let state = || async {
        let request = Request::get("/state").header("idempotency-key", "abc").body(Body::empty())?;
        anyhow::Ok(layer.status_service().oneshot(request).await?)
    };
    for trap in [format, scope] {
        let refused = state().await?;
        assert_eq!(refused.status(), 500);
        assert_eq!(
            refused.headers().get("idempotency-problem").map(HeaderValue::as_bytes),
            Some(&b"internal"[..])
        );
        trap.remove();
    }
    assert_eq!(state().await?.status(), 404);
    Ok(())
}

#[tokio::test]
async fn a_function_that_panics_after_the_handler_neither_loses_the_answer_nor_frees_the_key()
-> anyhow::Result<()> {
    let trapped: [Trapped; 2] = [
        |layer, trap| {
            layer.with_on_status(move |_, _| {
                trap.spring();
                OnStatus::Release
            })
        },
        |layer, trap| {
            layer.with_ttl_of(move |_| {
                trap.spring();
                std::time::Duration::from_millis(1)
            })
        },
    ];
    for trapped in trapped {
        let world =
            World::with(move |layer| trapped(layer, Trap::set()).with_on_crash(OnCrash::Retry))
                .await?;
        let (first, retry) = (world.pay("abc").send().await?, world.pay("abc").send().await?);
        assert_eq!(
            (first.status, retry.is_replayed(), retry.answer()),
            (201, true, first.answer())
        );
        assert_eq!(world.effects("abc"), 1);
    }
    Ok(())
}

#[tokio::test]
async fn a_status_whose_function_panics_frees_no_key() -> anyhow::Result<()> {
    let world = World::with(|layer| {
        layer.with_on_status(|_, _| {
            Trap::set().spring();
            OnStatus::Store
        })
    })
    .await?;
    for status in ["429", "503"] {
        let first = world.pay(status).header("x-status", status).send().await?;
        assert_eq!(first.status.to_string(), status, "the first client gets what the handler said");
        world.pay(status).send().await?.assert_problem(409, "uncertain")?;
        assert_eq!(world.effects(status), 1);
    }
    Ok(())
}

#[tokio::test]
async fn a_question_that_panics_is_asked_again_and_nothing_runs_meanwhile() -> anyhow::Result<()> {
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    let world = World::setup()
        .routes(Router::new().route("/panic", post(charge_and_panic)))
        .layer(move |layer| {
            let question = move |_: Context, _: Request<Bytes>| {
                let first = count.fetch_add(1, Ordering::SeqCst) == 0;
                async move {
                    assert!(!first, "the test asked for it");
                    Verdict::Completed(Response::new(Bytes::from_static(b"charged")))
                }
            };
            layer.with_verify(question).with_settle(std::time::Duration::ZERO)
        })
        .start()
        .await?;
    let pay = || world.client.post("/panic").key("abc").send();
    pay().await?.assert_problem(500, "internal")?;
    // Whoever meets the panic is told that nobody knows, or that the service failed; never to send
    // another request.
    let met = pay().await?;
    assert!([409, 500].contains(&met.status), "{met:?}");
    let answered = async || pay().await.is_ok_and(|reply| reply.body == "charged");
    eventually_async("the question to be asked again", answered).await?;
    assert_eq!((asked.load(Ordering::SeqCst), world.effects("charged")), (2, 1));
    Ok(())
}

#[tokio::test]
async fn a_handler_that_panics_unprotected_is_said_to_have_run_so() -> anyhow::Result<()> {
    let routes = || Router::new().route("/panic", post(charge_and_panic));
    let disabled = World::setup().routes(routes()).start().await?;
    disabled.engine.disable("http");
    let open = World::setup().routes(routes()).layer(IdempotencyLayer::with_fail_open);
    let open = open.engine(|builder| builder.claim_timeout(NO_PATIENCE)).start().await?;
    open.store.always(Operation::Claim, Some(Fault::Refused(StoreErrorKind::Refused)));
    for world in [disabled, open] {
        let reply = world.client.post("/panic").key("abc").send().await?;
        reply.assert_problem(500, "internal")?;
        assert_eq!(
            (reply.header("idempotency-bypassed"), world.effects("charged")),
            (Some("true"), 1)
        );
    }
    Ok(())
}

/// What a handler sends to a service downstream as the key of its request.
async fn derive() -> String {
    Context::current().derive_key("psp")
}

#[tokio::test]
async fn a_handler_that_runs_unprotected_has_the_keys_for_others_that_a_protected_one_has()
-> anyhow::Result<()> {
    let start = |patience| {
        let setup = World::setup().routes(Router::new().route("/derive", post(derive)));
        setup
            .engine(move |builder| builder.claim_timeout(patience))
            .layer(IdempotencyLayer::with_fail_open)
            .start()
    };
    let protected = start(PATIENCE).await?.client.post("/derive").key("abc").send().await?;
    assert_eq!((protected.status, protected.header("idempotency-bypassed")), (200, None));
    let open = start(NO_PATIENCE).await?;
    open.store.always(Operation::Claim, Some(Fault::Refused(StoreErrorKind::Refused)));
    let unprotected = open.client.post("/derive").key("abc").send().await?;
    assert_eq!(
        (unprotected.status, unprotected.header("idempotency-bypassed")),
        (200, Some("true"))
    );
    assert_eq!(unprotected.body, protected.body);
    assert_ne!(open.client.post("/derive").key("other").send().await?.body, protected.body);
    Ok(())
}

#[tokio::test]
async fn what_ran_unprotected_is_never_sent_again_whatever_the_client_says() -> anyhow::Result<()> {
    let world = World::setup().layer(IdempotencyLayer::with_fail_open);
    let world = world.engine(|builder| builder.claim_timeout(NO_PATIENCE)).start().await?;
    world.store.always(Operation::Claim, Some(Fault::Refused(StoreErrorKind::Refused)));
    let layer = layer(&ManualClock::new()).with_retried_answers(|_| true).with_max_attempts(4);
    for status in ["500", "503", "409"] {
        let request = Request::post(format!("http://{}/pay", world.client.address()))
            .header("idempotency-key", format!("\"{status}\""))
            .header("x-status", status);
        let answer = send(client(&layer), request.body("{}".to_owned())?).await??;
        assert_eq!((answer.status.to_string().as_str(), answer.attempts()), (status, Some(1)));
        assert_eq!(world.effects(status), 1, "charges");
    }
    Ok(())
}

#[tokio::test]
async fn what_cannot_change_is_not_sent_again_whatever_the_client_says() -> anyhow::Result<()> {
    let settled: [(u16, &[_]); 5] = [
        (503, &[("idempotency-replayed", "true")]),
        (503, &[("idempotent-replayed", "true")]),
        (503, &[("idempotency-bypassed", "true")]),
        (503, &[("stripe-should-retry", "false")]),
        (409, &[("idempotency-problem", "uncertain")]),
    ];
    for (status, headers) in settled {
        let service = Scripted::start([answer_with(status, headers)]).await?;
        let layer = layer(&ManualClock::new()).with_retried_answers(|_| true);
        let answer = send(client(&layer), service.post("/pay")).await??;
        assert_eq!((answer.text(), service.keys().len()), ((status, "answer 1"), 1), "{headers:?}");
    }
    Ok(())
}

#[tokio::test]
async fn functions_of_the_client_that_panic_neither_lose_the_answer_nor_send_again()
-> anyhow::Result<()> {
    let quick = || layer(&ManualClock::new());

    let service = Scripted::start([answer(500)]).await?;
    let layer = quick().with_retried_answers(|_| panic!("the test asked for it"));
    assert_eq!(send(client(&layer), service.post("/pay")).await??.text(), (500, "answer 1"));

    let service = Scripted::start([Step::Close]).await?;
    let layer = quick()
        .with_errors(|_: &hyper_util::client::legacy::Error| panic!("the test asked for it"));
    let error = send(layer.layer(Strict::new()), service.post("/pay")).await?.err();
    assert!(matches!(&error, Some(ClientError::Failed { .. })), "{error:?}");
    assert_eq!(error.as_ref().and_then(ClientError::sent).map(Sent::attempts), Some(1));

    let service = Scripted::start([answer(503)]).await?;
    let layer: ClientLayer<_> =
        quick().with_body_copy(|_: &String| panic!("the test asked for it"));
    let answer = send(layer.layer(Strict::new()), service.post("/pay")).await??;
    assert_eq!((answer.text(), service.keys().len()), ((503, "answer 1"), 1));
    Ok(())
}

#[tokio::test]
async fn a_function_that_panics_is_named_in_the_log() -> anyhow::Result<()> {
    let log = log();
    let world = World::with(|layer| layer.with_ttl_of(|_| panic!("the test asked for it"))).await?;
    assert_eq!(world.pay("abc").send().await?.status, 201);
    let logged = log.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(logged.contains("option=\"with_ttl_of\""), "{logged}");
    Ok(())
}
