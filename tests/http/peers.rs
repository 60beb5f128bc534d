//! Rules 66 to 69: other people's clients, services and proxies.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request as AxumRequest, State};
use axum::http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use axum::middleware::{Next, from_fn, map_response};
use axum::response::IntoResponse as _;
use axum::routing::post;
use axum::{Json, Router};
use idempotency::http::client::Sent;
use idempotency::http::{
    HeaderNames, IdempotencyKey, IdempotencyLayer, Problem, ProblemKind, Scope,
};
use idempotency::record::State as RecordState;
use idempotency::store::{MemoryStore, Operation, StoreErrorKind};
use idempotency::testing::{Fault, ManualClock};
use idempotency::{Error, Idempotency};
use idempotency_test_support::deadline::within;
use serde_json::Value;

use crate::client::{Reply, raw_post};
use crate::scripted::{Drawn, Scripted, answer, answer_with, client, layer, send};
use crate::world::{DAY, NO_PATIENCE, PATIENCE, Shop, World};

const SECOND: Duration = Duration::from_secs(1);

/// Each with what it is: refusals that need no time and no crash.
async fn refusals(world: &World) -> anyhow::Result<Vec<(ProblemKind, Reply)>> {
    assert_eq!(world.pay("abc").send().await?.status, 201);
    let running = world.pay("running").header("x-wait", "1").spawn();
    world.entered("running").await?;
    let mut refusals = vec![
        (ProblemKind::Missing, world.client.post("/pay").send().await?),
        (ProblemKind::Malformed, world.pay("").send().await?),
        (ProblemKind::Mismatch, world.pay("abc").body("other").send().await?),
        (ProblemKind::InProgress, world.pay("running").send().await?),
    ];
    world.store.next(Operation::Claim, Fault::Refused(StoreErrorKind::Full));
    refusals.push((ProblemKind::Unavailable, world.pay("new").send().await?));
    world.store.next(Operation::Claim, Fault::Refused(StoreErrorKind::Corrupt));
    refusals.push((ProblemKind::Internal, world.pay("new").send().await?));
    world.shop.gate.open();
    running.reply().await?;
    Ok(refusals)
}

/// With the time that is known, or with one second.
#[tokio::test]
async fn a_refusal_says_when_to_retry_if_a_retry_helps_and_only_then() -> anyhow::Result<()> {
    let world = World::setup().start().await?;
    let large = world.pay("large").body("x".repeat(3 << 20)).send().await?;
    let mut refusals = refusals(&world).await?;
    refusals.push((ProblemKind::TooLarge, large));
    for (kind, reply) in refusals {
        let helps = matches!(kind, ProblemKind::InProgress | ProblemKind::Unavailable);
        assert_eq!(reply.header("retry-after"), helps.then_some("1"), "{}", kind.name());
        let exposed = reply.headers.get_all("access-control-expose-headers").iter();
        let is_exposed = exposed
            .filter_map(|value| value.to_str().ok())
            .any(|names| names.contains("Retry-After"));
        assert_eq!(is_exposed, helps, "{}: {reply:?}", kind.name());
    }
    // The others need time, a crash or a setting of their own.
    let others = [
        ProblemKind::NoPrincipal,
        ProblemKind::Uncertain,
        ProblemKind::Expired,
        ProblemKind::NotKept,
    ];
    for kind in others.into_iter().chain([ProblemKind::Unreadable]) {
        assert!(
            !Problem::new(kind).to_response().headers().contains_key("retry-after"),
            "{}",
            kind.name()
        );
    }
    Ok(())
}

#[tokio::test]
async fn rule_66_refusals_have_the_form_that_the_service_gives_them() -> anyhow::Result<()> {
    let shape = |problem: &Problem, response: Response<Bytes>| {
        let text =
            format!("{} {} {}", problem.kind().name(), response.status().as_u16(), problem.title());
        let shaped = Response::builder()
            .status(StatusCode::IM_A_TEAPOT)
            .header("content-type", "text/plain");
        // What the layer answers for stays: these are not the service's to say.
        let shaped = shaped
            .header("content-length", "3")
            .header("transfer-encoding", "chunked")
            .header("idempotency-replayed", "true");
        shaped
            .header("idempotency-problem", "none")
            .body(Bytes::from(text))
            .expect("the response is well-formed")
    };
    let world = World::with(move |layer| layer.with_problem(shape)).await?;
    for (kind, reply) in refusals(&world).await? {
        let text = format!("{} {}", kind.name(), kind.status().as_u16());
        assert!(reply.status == 418 && reply.body.starts_with(text.as_bytes()), "{reply:?}");
        assert_eq!(
            (reply.header("content-type"), reply.header("cache-control")),
            (Some("text/plain"), Some("no-store"))
        );
        assert_eq!(
            (reply.header("idempotency-problem"), reply.is_replayed()),
            (Some(kind.name()), false)
        );
    }
    // It shapes what is refused, neither results nor replays.
    let retry = world.pay("abc").send().await?;
    assert_eq!((retry.status, retry.is_replayed(), world.effects("abc")), (201, true, 1));
    Ok(())
}

#[tokio::test]
async fn rule_66_the_form_of_a_refusal_never_makes_a_result_of_it() -> anyhow::Result<()> {
    type Shape = fn(&Problem, Response<Bytes>) -> Response<Bytes>;
    let shapes: [Shape; 4] = [
        |_, _| Response::new(Bytes::from_static(b"paid")),
        |_, response| {
            let (mut head, body) = response.into_parts();
            head.status = StatusCode::FOUND;
            Response::from_parts(head, body)
        },
        |_, response| {
            let (mut head, body) = response.into_parts();
            head.status = StatusCode::SWITCHING_PROTOCOLS;
            Response::from_parts(head, body)
        },
        |_, _| panic!("the test asked for it"),
    ];
    for (shape, of_stripe) in shapes.into_iter().flat_map(|shape| [(shape, false), (shape, true)]) {
        let world = World::with(move |layer| {
            let layer = if of_stripe { layer.stripe() } else { layer };
            layer.with_problem(shape)
        })
        .await?;
        for (kind, reply) in refusals(&world).await? {
            if of_stripe {
                assert_of_stripe(kind, &reply)?;
            } else {
                reply.assert_problem(kind.status().as_u16(), kind.name())?;
            }
        }
        assert_eq!((world.effects("abc"), world.effects("new")), (1, 0));
        assert_eq!(
            (world.pay("new").send().await?.status, world.effects("new")),
            (201, 1),
            "the key is as good as new"
        );
    }
    Ok(())
}

/// Tells what the layer has told it.
async fn look(request: AxumRequest, next: Next) -> Response<Body> {
    let mut response = next.run(request).await;
    let kind = response.extensions().get::<ProblemKind>().map_or("none", |kind| kind.name());
    let operation = response
        .extensions()
        .get::<Error>()
        .map_or("none", |error| error.operation().unwrap_or("unnamed"));
    let told = [
        ("x-kind", HeaderValue::from_static(kind)),
        ("x-error", HeaderValue::from_str(operation).expect("text")),
    ];
    response.headers_mut().extend(told.map(|(name, value)| (HeaderName::from_static(name), value)));
    response
}

#[tokio::test]
async fn rule_66_layers_in_front_see_which_refusal_it_is_and_the_error_behind_it()
-> anyhow::Result<()> {
    for shaped in [false, true] {
        let layer = move |layer: IdempotencyLayer| if shaped { layer.stripe() } else { layer };
        let world = World::setup()
            .layer(layer)
            .around(|router: Router| router.layer(from_fn(look)))
            .start()
            .await?;
        for (kind, reply) in refusals(&world).await? {
            let error = if matches!(kind, ProblemKind::Missing | ProblemKind::Malformed) {
                "none"
            } else {
                "http"
            };
            assert_eq!(
                (reply.header("x-kind"), reply.header("x-error")),
                (Some(kind.name()), Some(error))
            );
        }
        let replay = world.pay("abc").send().await?;
        assert_eq!(
            (replay.status, replay.header("x-kind"), replay.header("x-error")),
            (201, Some("none"), Some("none"))
        );
    }
    Ok(())
}

/// A refusal in the form that clients of Stripe's API expect.
fn assert_of_stripe(kind: ProblemKind, reply: &Reply) -> anyhow::Result<()> {
    let (status, name, code, again) = match kind {
        ProblemKind::Missing | ProblemKind::Malformed => (400, "invalid_request_error", None, None),
        ProblemKind::Mismatch => (400, "idempotency_error", None, Some("false")),
        ProblemKind::InProgress => {
            (409, "idempotency_error", Some("idempotency_key_in_use"), Some("true"))
        }
        ProblemKind::Uncertain => (409, "api_error", None, Some("false")),
        ProblemKind::Unavailable => (503, "api_error", None, Some("true")),
        ProblemKind::TooLarge => (413, "invalid_request_error", None, None),
        _ => (500, "api_error", None, None),
    };
    let error = &reply.json()?["error"];
    assert_eq!(
        (reply.status, &error["type"], error["code"].as_str()),
        (status, &Value::from(name), code),
        "{reply:?}"
    );
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
    let page = error["doc_url"].as_str().unwrap_or_default();
    assert!(page.ends_with(&format!("#{}", kind.name())), "{page}");
    assert_eq!(
        (reply.header("stripe-should-retry"), reply.header("content-type")),
        (again, Some("application/json"))
    );
    assert_eq!(
        (reply.header("cache-control"), reply.header("idempotency-problem")),
        (Some("no-store"), Some(kind.name()))
    );
    assert_eq!(reply.header("retry-after").is_some(), again == Some("true"), "{reply:?}");
    Ok(())
}

/// The function adds to the form of those clients, and does not go back to ours.
#[tokio::test]
async fn rule_66_a_form_after_stripe_begins_with_the_form_of_stripe() -> anyhow::Result<()> {
    let shape = |_: &Problem, mut response: Response<Bytes>| {
        response.headers_mut().insert("x-support", HeaderValue::from_static("yes"));
        response
    };
    let world = World::with(move |layer| layer.stripe().with_problem(shape)).await?;
    for (kind, reply) in refusals(&world).await? {
        assert_of_stripe(kind, &reply)?;
        assert_eq!(reply.header("x-support"), Some("yes"), "{reply:?}");
    }
    // The last one counts, as with the other options that it sets.
    let world = World::with(move |layer| layer.with_problem(shape).stripe()).await?;
    let missing = world.client.post("/pay").send().await?;
    assert_of_stripe(ProblemKind::Missing, &missing)?;
    assert_eq!(missing.header("x-support"), None);
    Ok(())
}

/// Handlers that refuse in our words: with the error of a guarded call, with a problem, and by the
/// extractor. A layer between them and ours adds a header.
fn refusing() -> Router<Shop> {
    async fn mismatch(State(shop): State<Shop>) -> Result<&'static str, Error> {
        shop.effect("handled");
        let engine = Idempotency::new(MemoryStore::new());
        for amount in [1, 2] {
            let call = engine.call("charge", "order").fingerprint(&amount).ttl(DAY);
            call.run(|| async { Ok::<_, Error>(()) }).await?;
        }
        Ok("charged twice")
    }
    async fn mark(mut response: Response<Body>) -> Response<Body> {
        response.headers_mut().append("x-served-by", HeaderValue::from_static("shop"));
        response.headers_mut().append("x-served-by", HeaderValue::from_static("till"));
        response
    }
    async fn reword(response: Response<Body>) -> Response<Body> {
        let (mut head, _) = response.into_parts();
        head.headers.insert("content-type", HeaderValue::from_static("text/plain"));
        Response::from_parts(head, Body::from("own words"))
    }
    let uncertain = async || Problem::new(ProblemKind::Uncertain).into_response();
    let explained = async || {
        Problem::new(ProblemKind::Mismatch).with_documentation("https://shop/help").into_response()
    };
    let reworded = post(async || Problem::new(ProblemKind::Mismatch).into_response());
    let digested = async |response: Response<Body>| {
        let (mut head, body) = response.into_parts();
        for name in ["content-digest", "repr-digest", "digest", "content-md5", "trailer"] {
            head.headers.insert(name, HeaderValue::from_static("of-the-old-bytes"));
        }
        let exposed = HeaderValue::from_static("x-served-by");
        head.headers.append("access-control-expose-headers", exposed);
        Response::from_parts(head, body)
    };
    // A handler that says when, and for how long.
    let told = async || {
        let own = [("retry-after", "120"), ("cache-control", "private"), ("vary", "origin")];
        (own, Problem::new(ProblemKind::Unavailable)).into_response()
    };
    let limited = async || {
        (StatusCode::TOO_MANY_REQUESTS, Problem::new(ProblemKind::Mismatch)).into_response()
    };
    let accepted =
        async || (StatusCode::ACCEPTED, Problem::new(ProblemKind::Mismatch)).into_response();
    Router::new()
        .route("/told", post(told).layer(map_response(digested)))
        .route("/limited", post(limited))
        .route("/accepted", post(accepted))
        .route("/mismatch", post(mismatch))
        .route("/uncertain", post(uncertain))
        .route("/explained", post(explained))
        .route("/reworded", reworded.layer(map_response(reword)))
        .route("/key", post(async |key: IdempotencyKey| key.as_str().to_owned()))
        .layer(map_response(mark))
}

#[tokio::test]
async fn rule_66_problems_that_handlers_answer_with_have_the_form_of_the_layer()
-> anyhow::Result<()> {
    let layer = |layer: IdempotencyLayer| layer.stripe().with_optional_key();
    let world = World::setup().layer(layer).routes(refusing()).start().await?;
    let post = |path| world.client.post(path).key(path).send();
    // What they say about the effect is as before: the one frees the key, the other holds it.
    for handled in 1..=2 {
        let mismatch = post("/mismatch").await?;
        assert_of_stripe(ProblemKind::Mismatch, &mismatch)?;
        let marks: Vec<_> = mismatch.headers.get_all("x-served-by").iter().collect();
        assert_eq!(marks, ["shop", "till"]);
        assert_eq!((world.state("/mismatch").await?, world.effects("handled")), (None, handled));
    }
    for _ in 0..2 {
        assert_of_stripe(ProblemKind::Uncertain, &post("/uncertain").await?)?;
        assert_eq!(world.state("/uncertain").await?, Some(RecordState::InDoubt));
    }
    let explained = post("/explained").await?;
    assert_of_stripe(ProblemKind::Mismatch, &explained)?;
    assert_eq!(explained.json()?["error"]["doc_url"], "https://shop/help#mismatch");
    // Without a key the layer passes the request on, whether keys are in headers or in bodies.
    assert_of_stripe(ProblemKind::Missing, &world.client.post("/key").send().await?)?;
    let in_body = World::setup()
        .layer(|layer| layer.stripe().with_optional_key().with_key_from_body("/id"))
        .routes(refusing())
        .start()
        .await?;
    assert_of_stripe(ProblemKind::Missing, &in_body.client.post("/key").body("{}").send().await?)?;

    // What the service has reworded is its own.
    let reworded = post("/reworded").await?;
    assert_eq!((reworded.status, &reworded.body[..]), (422, &b"own words"[..]));
    Ok(())
}

#[tokio::test]
async fn rule_66_problems_that_handlers_answer_with_have_the_form_that_the_service_gives_refusals()
-> anyhow::Result<()> {
    let shape = |problem: &Problem, response: Response<Bytes>| {
        response.map(|_| Bytes::from(format!("{} in own form", problem.kind().name())))
    };
    let layer = move |layer: IdempotencyLayer| layer.with_optional_key().with_problem(shape);
    let world = World::setup().layer(layer).routes(refusing()).start().await?;
    let post = |path| world.client.post(path).key(path).send();
    let missing = world.client.post("/key").send().await?;
    for (name, reply) in [
        ("mismatch", post("/mismatch").await?),
        ("uncertain", post("/uncertain").await?),
        ("missing", missing),
    ] {
        assert_eq!(reply.body, format!("{name} in own form"), "{reply:?}");
        assert_eq!(reply.header("idempotency-problem"), Some(name));
    }
    assert_eq!(world.state("/mismatch").await?, None);
    assert_eq!(world.state("/uncertain").await?, Some(RecordState::InDoubt));
    // Without a form of its own the layer leaves a handler's response as it is.
    let plain = World::setup().routes(refusing()).start().await?;
    let explained = plain.client.post("/explained").key("abc").send().await?;
    explained.assert_problem(422, "mismatch")?;
    assert_eq!(explained.json()?["type"], "https://shop/help#mismatch");
    Ok(())
}

#[tokio::test]
async fn rule_66_problems_that_handlers_answer_with_have_the_address_and_the_header_of_the_layer()
-> anyhow::Result<()> {
    let renaming = HeaderNames::default().with_problem("x-refused")?;
    let addressed: fn(_) -> _ =
        |layer: IdempotencyLayer| layer.with_documentation("https://shop/keys");
    let named = move |layer: IdempotencyLayer| layer.with_header_names(renaming.clone());
    let worlds = [
        (World::setup().layer(addressed), "https://shop/keys#uncertain", "idempotency-problem"),
        (World::setup().layer(named), "https://docs.rs/idempotency/", "x-refused"),
    ];
    for (world, address, header) in worlds {
        let world = world.routes(refusing()).start().await?;
        let uncertain = world.client.post("/uncertain").key("abc").send().await?;
        let written = uncertain.json()?["type"].as_str().unwrap_or_default().to_owned();
        assert!(written.starts_with(address), "{written}");
        assert_eq!((uncertain.status, uncertain.header(header)), (409, Some("uncertain")));
        let marks: Vec<_> = uncertain.headers.get_all("x-served-by").iter().collect();
        assert_eq!(marks, ["shop", "till"]);
    }
    Ok(())
}

#[tokio::test]
async fn rule_66_problems_that_handlers_answer_with_have_the_form_of_the_layer_without_protection()
-> anyhow::Result<()> {
    for is_disabled in [true, false] {
        let world = World::setup()
            .engine(|builder| builder.claim_timeout(NO_PATIENCE))
            .layer(|layer| layer.stripe().with_fail_open())
            .routes(refusing())
            .start()
            .await?;
        if is_disabled {
            world.engine.disable("http");
        } else {
            world.store.always(Operation::Claim, Some(Fault::Refused(StoreErrorKind::Refused)));
        }
        let mismatch = world.client.post("/mismatch").key("abc").send().await?;
        assert_of_stripe(ProblemKind::Mismatch, &mismatch)?;
        assert_eq!(
            (mismatch.header("idempotency-bypassed"), world.effects("handled")),
            (Some("true"), 1)
        );
    }
    Ok(())
}

/// Another form changes what the plain one is made of, and nothing else.
#[tokio::test]
async fn rule_66_the_form_of_a_problem_keeps_what_the_handler_and_other_layers_say()
-> anyhow::Result<()> {
    let shape = |_: &Problem, mut response: Response<Bytes>| {
        response.headers_mut().append("vary", HeaderValue::from_static("accept"));
        response.map(|_| Bytes::from_static(b"own form"))
    };
    for of_stripe in [true, false] {
        let layer = move |layer: IdempotencyLayer| {
            if of_stripe { layer.stripe() } else { layer.with_problem(shape) }
        };
        let world = World::setup().layer(layer).routes(refusing()).start().await?;
        let post = |path| world.client.post(path).key(path).send();
        let told = post("/told").await?;
        assert_eq!((told.status, told.header("idempotency-problem")), (503, Some("unavailable")));
        let all = |name: &str| -> Vec<_> {
            told.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect()
        };
        assert_eq!((all("retry-after"), all("cache-control")), (vec!["120"], vec!["private"]));
        let vary = if of_stripe { vec!["origin"] } else { vec!["accept", "origin"] };
        assert_eq!(all("vary"), vary);
        let exposed = all("access-control-expose-headers");
        for name in ["Retry-After", "x-served-by"] {
            assert_eq!(
                exposed.iter().filter(|&&exposed| exposed == name).count(),
                1,
                "{exposed:?}"
            );
        }
        assert!(exposed.iter().any(|names| names.contains("idempotency-problem")), "{exposed:?}");
        for name in ["content-digest", "repr-digest", "digest", "content-md5", "trailer"] {
            assert_eq!(told.header(name), None, "{name}");
        }
        // The status that the handler has chosen. To clients of Stripe's API a 202 is a result.
        assert_eq!(post("/limited").await?.status, 429);
        assert_eq!(post("/accepted").await?.status, if of_stripe { 400 } else { 202 });
        let mismatch = post("/mismatch").await?;
        assert_eq!(mismatch.status, if of_stripe { 400 } else { 422 });
    }
    Ok(())
}

/// The form that a layer inside has given its refusals stays. Its problem details do not.
#[tokio::test]
async fn rule_66_the_plain_refusal_of_a_layer_inside_has_the_form_of_the_one_around_it()
-> anyhow::Result<()> {
    for is_shaped in [false, true] {
        let engine = Idempotency::new(MemoryStore::new());
        let nobody = Scope::of(|_| None::<u32>);
        let inside = IdempotencyLayer::new(engine, nobody).with_operation("inside");
        let inside = if is_shaped {
            inside.with_problem(|_, response| response.map(|_| Bytes::from_static(b"own words")))
        } else {
            inside
        };
        let routes = Router::new().route("/inside", post(async || "paid").layer(inside));
        let world = World::setup().layer(IdempotencyLayer::stripe).routes(routes).start().await?;
        let refused = world.client.post("/inside").key("abc").send().await?;
        assert_eq!(
            (refused.status, refused.header("idempotency-problem")),
            (401, Some("no-principal"))
        );
        if is_shaped {
            assert_eq!(&refused.body[..], b"own words");
        } else {
            assert_eq!(refused.json()?["error"]["type"], "invalid_request_error");
        }
    }
    Ok(())
}

/// With the official clients: `tests/stripe`.
#[tokio::test]
async fn rule_66_stripe_refuses_as_clients_of_stripe_expect() -> anyhow::Result<()> {
    let world = World::with(IdempotencyLayer::stripe).await?;
    let mut refusals = refusals(&world).await?;
    world.store.always(Operation::Claim, None);
    let large = world.pay("large").body("x".repeat(3 << 20)).send().await?;
    refusals.push((ProblemKind::TooLarge, large));
    for (kind, reply) in refusals {
        assert_of_stripe(kind, &reply)?;
    }
    let replay = world.pay("abc").send().await?;
    let marks = ["idempotent-replayed", "stripe-should-retry", "idempotency-replayed"]
        .map(|name| replay.header(name));
    assert_eq!((replay.status, marks), (201, [Some("true"), Some("false"), None]));
    Ok(())
}

#[tokio::test]
async fn rule_67_the_names_of_key_and_markers_can_be_set_on_both_sides() -> anyhow::Result<()> {
    let names = HeaderNames::new()
        .with_key("X-Request-Key")?
        .with_replayed("x-replayed")?
        .with_expires("x-expires")?
        .with_bypassed("x-open")?
        .with_problem("x-why")?;
    let start = |patience| {
        let names = names.clone();
        let world = World::setup().engine(move |builder| builder.claim_timeout(patience)).layer(
            move |layer| {
                let markers = ["x-replayed", "x-open", "idempotency-replayed", "x-request-id"]
                    .map(HeaderName::from_static);
                layer.with_replayed_headers(markers).with_header_names(names).with_fail_open()
            },
        );
        world.start()
    };
    let world = start(PATIENCE).await?;
    let post = || world.client.post("/pay");
    let exposes = |reply: &Reply, name: &str| {
        let exposed = reply.headers.get_all("access-control-expose-headers").iter();
        exposed
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(", ").any(|exposed| exposed == name))
    };
    let has_usual =
        |reply: &Reply| reply.headers.keys().any(|name| name.as_str().starts_with("idempotency-"));

    // The usual name is any header now.
    let missing = post().key("abc").send().await?;
    assert_eq!(
        (missing.status, missing.header("x-why"), exposes(&missing, "x-why")),
        (400, Some("missing"), true)
    );
    let pay = |key: &str| post().header("x-request-key", key);
    let (first, replay) = (pay("abc").send().await?, pay("abc").send().await?);
    assert_eq!((first.header("x-replayed"), replay.header("x-replayed")), (None, Some("true")));
    assert!(
        first.header("x-expires").is_some() && replay.header("x-expires").is_some(),
        "{replay:?}"
    );
    assert!(
        ["x-replayed", "x-expires", "x-open", "x-why"].iter().all(|name| exposes(&replay, name)),
        "{replay:?}"
    );
    assert!(![missing, first, replay].iter().any(has_usual));

    // The client sends the one, and knows the others.
    let sender =
        layer(&ManualClock::new()).with_header_names(names.clone()).with_retried_answers(|_| true);
    let request = |world: &World, status: &'static str| {
        let address = format!("http://{}/pay", world.client.address());
        Request::post(address).header("x-status", status).body("{}".to_owned())
    };
    let answer =
        send(client(&sender.clone().with_max_attempts(2)), request(&world, "201")?).await??;
    let is_replayed = answer.headers.get("x-replayed").is_some_and(|value| value == "true");
    assert_eq!((answer.status, answer.attempts(), is_replayed), (201, Some(2), true));
    let away = start(NO_PATIENCE).await?;
    away.store.always(Operation::Claim, Some(Fault::Refused(StoreErrorKind::Refused)));
    let answer = send(client(&sender.with_max_attempts(3)), request(&away, "503")?).await??;
    assert_eq!(
        (answer.status, answer.attempts(), answer.headers.contains_key("x-open")),
        (503, Some(1), true)
    );
    Ok(())
}

#[tokio::test]
async fn rule_68_grpc_requests_pass_through_untouched() -> anyhow::Result<()> {
    let world = World::new().await?;
    let types = [
        "application/grpc",
        "application/grpc+proto",
        "Application/GRPC-Web; x=1",
        "application/grpc-web-text",
    ];
    let mut runs = 0;
    for content_type in types {
        for key in [Some("abc"), Some("abc"), None, Some("")] {
            let request = world.client.post("/pay").header("content-type", content_type);
            let request = match key {
                Some(key) => request.key(key),
                None => request,
            };
            let reply = request.send().await?;
            assert_eq!((reply.status, reply.is_replayed()), (201, false), "{content_type}");
            assert!(
                reply.headers.keys().all(|name| !name.as_str().starts_with("idempotency-")),
                "{reply:?}"
            );
            runs += 1;
            assert_eq!(world.effects("none"), runs, "the handler finds no key");
        }
    }
    assert_eq!(world.records().await?, 0);
    // What only looks like it is guarded.
    for content_type in ["application/grpcx", "text/application/grpc", "application/json"] {
        let pay = || world.pay(content_type).header("content-type", content_type).send();
        let (_, retry) = (pay().await?, pay().await?);
        assert!(retry.is_replayed(), "{content_type}");
    }
    let two = b"Content-Type: application/json\r\nContent-Type: application/grpc\r\n";
    let refused = world.client.exchange(raw_post("/pay", two, b"{}")).await?;
    assert!(refused.starts_with("HTTP/1.1 400 "), "two content types are not gRPC's: {refused}");
    Ok(())
}

/// axum reads it as JSON, as it reads every type that ends so.
#[tokio::test]
async fn rule_68_a_type_of_grpc_that_others_read_as_json_is_guarded_where_it_has_a_key()
-> anyhow::Result<()> {
    async fn charge(State(shop): State<Shop>, Json(_): Json<Value>) {
        shop.effect("charged");
    }
    let world = World::setup().routes(Router::new().route("/charge", post(charge))).start().await?;
    for content_type in ["application/grpc+json", "Application/gRPC-Web+JSON; x=1"] {
        let before = world.effects("charged");
        let charge = || world.client.post("/charge").header("content-type", content_type);
        let (first, retry) =
            (charge().key(content_type).send().await?, charge().key(content_type).send().await?);
        assert_eq!((first.status, retry.is_replayed()), (200, true), "{content_type}");
        assert_eq!(world.effects("charged"), before + 1, "{content_type}");
        assert_eq!(charge().send().await?.status, 200, "a service of gRPC knows nothing of keys");
    }
    Ok(())
}

#[tokio::test]
async fn rule_68_the_client_neither_labels_nor_repeats_grpc_requests() -> anyhow::Result<()> {
    let service = Scripted::start([answer(503)]).await?;
    let mut request = service.post("/pay");
    request.headers_mut().insert("content-type", "application/grpc".parse()?);
    let answer = send(client(&layer(&ManualClock::new())), request).await??;
    assert_eq!(
        (answer.text(), answer.attempts(), service.keys()),
        ((503, "answer 1"), None, vec!["none".to_owned()])
    );
    Ok(())
}

#[tokio::test]
async fn rule_12_a_method_in_other_letters_is_guarded_as_the_one_that_it_spells()
-> anyhow::Result<()> {
    let mut world = World::new().await?;
    let deletes = world.another_server(|layer| layer.with_methods([Method::DELETE])).await?;
    // The routes of these services take any method, as `any` in axum and plain services of hyper
    // do.
    for (client, method, guarded) in [
        (&world.client, "post", true),
        (&world.client, "pAtCh", true),
        (&world.client, "put", false),
        (&world.client, "get", false),
        (&deletes, "Delete", true),
        (&deletes, "post", false),
    ] {
        let method = Method::from_bytes(method.as_bytes())?;
        let key = uuid::Uuid::new_v4().to_string();
        let send = || client.request(method.clone(), "/pay").key(&key).send();
        assert_eq!(send().await?.status, 201, "{method}");
        assert_eq!(send().await?.is_replayed(), guarded, "{method}");
        let without = client.request(method.clone(), "/pay").send().await?;
        if guarded {
            without.assert_problem(400, "missing")?;
        } else {
            assert_eq!(without.status, 201, "{method}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn rule_12_a_method_that_nobody_knows_is_guarded_where_it_has_a_key() -> anyhow::Result<()> {
    let mut world = World::new().await?;
    let in_body = world.another_server(|layer| layer.with_key_from_body("/id")).await?;
    for method in ["CHARGE", "charge", "LOCK", "X-POST"] {
        let method = Method::from_bytes(method.as_bytes())?;
        for client in [&world.client, &in_body] {
            let key = uuid::Uuid::new_v4().to_string();
            let send = || {
                let request =
                    client.request(method.clone(), "/pay").body(format!(r#"{{"id": "{key}"}}"#));
                request.key(&key).send()
            };
            assert_eq!(send().await?.status, 201, "{method}");
            assert_eq!((send().await?.is_replayed(), world.effects(&key)), (true, 1), "{method}");
            // They are not refused for want of one: not every one of them has an effect.
            assert_eq!(
                client.request(method.clone(), "/pay").send().await?.status,
                201,
                "{method}"
            );
        }
        world
            .client
            .request(method, "/pay")
            .key("")
            .send()
            .await?
            .assert_problem(400, "malformed")?;
    }
    for safe in ["PROPFIND", "QUERY", "REPORT", "SEARCH", "propfind"] {
        let method = Method::from_bytes(safe.as_bytes())?;
        let send = || world.client.request(method.clone(), "/pay").key(safe).send();
        assert_eq!(
            (send().await?.is_replayed(), send().await?.is_replayed()),
            (false, false),
            "{safe}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn rule_69_a_409_without_retry_after_is_asked_for_again_until_the_deadline()
-> anyhow::Result<()> {
    let problem = ("content-type", "application/problem+json");
    for headers in [&[][..], &[problem], &[("content-type", "application/json")]] {
        let conflict = answer_with(409, headers);
        let service = Scripted::start([conflict.clone(), conflict.clone()]).await?;
        let answer = send(client(&layer(&ManualClock::new())), service.post("/pay")).await??;
        assert_eq!((answer.text(), answer.attempts()), ((201, "answer 3"), Some(3)), "{headers:?}");
    }

    // With pauses that grow, and no further attempt when the next one would be too late.
    let service = Scripted::start(std::iter::repeat_n(answer(409), 100)).await?;
    let clock = ManualClock::new();
    let patient = layer(&clock)
        .with_backoff(SECOND, 16 * SECOND)
        .with_randomness(Drawn(0xff))
        .with_deadline(10 * SECOND);
    let request = tokio::spawn(send(client(&patient), service.post("/pay")));
    for (sent, pause) in [(1, 1), (2, 2), (3, 4)] {
        service.has_received(sent).await?;
        within("the pause", clock.wait_for_sleepers(2)).await?;
        clock.advance(pause * SECOND);
    }
    let answer = within("the last answer", request).await????;
    assert_eq!((answer.text(), answer.attempts()), ((409, "answer 4"), Some(4)));
    Ok(())
}

#[tokio::test]
async fn rule_69_stripe_should_retry_is_obeyed() -> anyhow::Result<()> {
    for (status, word, attempts) in [
        (409, "false", 1),
        (503, "false", 1),
        (429, " False", 1),
        (500, "true", 2),
        (400, "TRUE", 2),
        (409, "true", 2),
        (503, "perhaps", 2),
        (500, "perhaps", 1),
        // It has succeeded, whatever else it says.
        (200, "true", 1),
    ] {
        let service =
            Scripted::start([answer_with(status, &[("stripe-should-retry", word)])]).await?;
        let answer = send(client(&layer(&ManualClock::new())), service.post("/pay")).await??;
        assert_eq!(answer.attempts(), Some(attempts), "{status} {word}");
    }
    // No word of a service makes its client repeat what ran unprotected, or what will not change.
    for marker in ["idempotency-bypassed", "idempotency-replayed"] {
        let service = Scripted::start([answer_with(
            503,
            &[(marker, "true"), ("stripe-should-retry", "true")],
        )])
        .await?;
        let answer = send(client(&layer(&ManualClock::new())), service.post("/pay")).await??;
        assert_eq!(answer.attempts(), Some(1), "{marker}");
    }
    Ok(())
}

#[tokio::test]
async fn rule_69_an_uncertain_outcome_is_not_asked_for_blindly() -> anyhow::Result<()> {
    let world =
        World::with(|layer| layer.with_on_status(|_, _| idempotency::http::OnStatus::Hold)).await?;
    assert_eq!(world.pay("abc").send().await?.status, 201);
    let request = Request::post(format!("http://{}/pay", world.client.address()))
        .header("idempotency-key", "abc");
    let clock = ManualClock::new();
    let answer =
        send(client(&layer(&clock).with_max_attempts(5)), request.body("{}".to_owned())?).await??;
    assert!(answer.status == 409 && answer.body.contains("#uncertain"), "{}", answer.body);
    assert_eq!((answer.sent.as_ref().map(Sent::attempts), world.effects("abc")), (Some(1), 1));
    Ok(())
}
