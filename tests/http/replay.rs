//! Rules 13 to 22: what a retry gets.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, Method, Response, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse as _;
use axum::routing::post;
use futures::stream;
use idempotency::http::{IdempotencyLayer, OnStatus};
use idempotency_test_support::server::{RedisOptions, RedisServer};

use crate::client::raw_post;
use crate::process::{Orders, Process};
use crate::world::{Shop, World};

#[tokio::test]
async fn rule_13_the_first_request_is_answered_unaltered() -> anyhow::Result<()> {
    let routes = Router::new().route("/fixed", post(fixed));
    let mut world = World::setup().routes(routes.clone()).start().await?;
    let guarded = world.client.post("/fixed").key("abc").send().await?;
    let plain = world.bare_server(routes).await?.post("/fixed").send().await?;
    assert_eq!(guarded.answer(), plain.answer());
    let mut headers = guarded.headers.clone();
    for added in ["idempotency-key-expires", "access-control-expose-headers"] {
        assert!(headers.remove(added).is_some() && !plain.headers.contains_key(added), "{added}");
    }
    headers.insert("date", plain.headers["date"].clone());
    assert_eq!(headers, plain.headers);
    assert!(!guarded.is_replayed());
    Ok(())
}

/// With headers of all kinds, also ones that are never replayed.
async fn fixed() -> Response<Body> {
    Response::builder()
        .status(202)
        .header("content-type", "text/plain; charset=utf-8")
        .header("content-encoding", "identity")
        .header("location", "/here")
        .header("etag", "\"1\"")
        .header("set-cookie", "session=1")
        .header("set-cookie", "theme=dark")
        .header("authorization", "Bearer secret")
        .header("www-authenticate", "Basic")
        .header("proxy-authentication-info", "nextnonce=1")
        .header("idempotency-bypassed", "true")
        .header("date", "Thu, 01 Jan 1970 00:00:00 GMT")
        .header("keep-alive", "timeout=5")
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .header("x-request-id", "1")
        .body(Body::from("first"))
        .expect("the response is well-formed")
}

#[tokio::test]
async fn rule_14_a_retry_replays_and_says_so() -> anyhow::Result<()> {
    let world = World::new().await?;
    let first = world.pay("abc").send().await?;
    let retry = world.pay("abc").send().await?;
    assert_eq!((first.status, world.effects("abc")), (201, 1));
    assert_eq!(retry.answer(), first.answer());
    assert_eq!(
        (first.header("idempotency-replayed"), retry.header("idempotency-replayed")),
        (None, Some("true"))
    );
    for name in ["content-type", "location"] {
        assert!(first.header(name).is_some() && retry.header(name) == first.header(name), "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn rule_15_every_later_retry_replays_also_after_a_restart() -> anyhow::Result<()> {
    let redis = RedisServer::start(RedisOptions::new().private().append_only()).await?;
    let orders = Orders::new(redis.url())?;
    let server = Process::start(&orders, &[]).await?;
    let first = server.client().post("/pay").key("abc").send().await?;
    for _ in 0..5 {
        let retry = server.client().post("/pay").key("abc").send().await?;
        assert_eq!((retry.is_replayed(), retry.answer()), (true, first.answer()));
    }
    server.kill().await?;
    let mut redis = redis;
    redis.kill()?;
    redis.restart().await?;
    let server = Process::start(&orders, &[]).await?;
    for _ in 0..2 {
        let retry = server.client().post("/pay").key("abc").send().await?;
        assert_eq!((retry.is_replayed(), retry.answer()), (true, first.answer()));
    }
    assert_eq!(orders.effects("abc")?, 1);
    Ok(())
}

#[tokio::test]
async fn rule_16_headers_that_describe_the_answer_are_replayed() -> anyhow::Result<()> {
    let world = World::setup().routes(Router::new().route("/fixed", post(fixed))).start().await?;
    world.client.post("/fixed").key("abc").send().await?;
    let retry = world.client.post("/fixed").key("abc").send().await?;
    assert!(retry.is_replayed());
    for (name, value) in [
        ("content-type", "text/plain; charset=utf-8"),
        ("content-encoding", "identity"),
        ("location", "/here"),
        ("etag", "\"1\""),
    ] {
        assert_eq!(retry.header(name), Some(value));
    }
    assert_eq!(retry.header("x-request-id"), None);
    Ok(())
}

#[tokio::test]
async fn rule_17_credentials_dates_and_headers_of_a_connection_are_never_replayed()
-> anyhow::Result<()> {
    let never = [
        "set-cookie",
        "authorization",
        "www-authenticate",
        "proxy-authentication-info",
        "keep-alive",
        "connection",
        "x-hop",
        "idempotency-bypassed",
    ];
    let routes = Router::new().route("/fixed", post(fixed));
    // Also not if the service asks for them.
    let names = never.iter().chain(&["date", "content-length", "x-request-id"]);
    let names: Vec<_> = names.map(|name| HeaderName::from_static(name)).collect();
    let world = World::setup()
        .routes(routes)
        .layer(|layer| layer.with_replayed_headers(names))
        .start()
        .await?;
    let first = world.client.post("/fixed").key("abc").send().await?;
    assert!(never.iter().all(|name| first.header(name).is_some()), "{first:?}");
    let retry = world.client.post("/fixed").key("abc").send().await?;
    assert!(
        retry.is_replayed() && never.iter().all(|name| retry.header(name).is_none()),
        "{retry:?}"
    );
    assert_eq!((retry.header("content-length"), &retry.body[..]), (Some("5"), &b"first"[..]));
    assert_ne!(retry.header("date"), first.header("date"));
    assert_eq!(retry.header("x-request-id"), Some("1"), "the service asked for it");
    Ok(())
}

#[tokio::test]
async fn rule_18_empty_binary_and_redirecting_replies_are_byte_exact() -> anyhow::Result<()> {
    async fn shaped(request: Request) -> Response<Body> {
        let binary: Vec<u8> = (0..=255).cycle().take(70_000).collect();
        let (status, body) = match request.uri().path() {
            "/204" => (204, Vec::new()),
            "/empty" => (200, Vec::new()),
            "/binary" => (200, binary),
            _ => (303, b"elsewhere".to_vec()),
        };
        let response =
            Response::builder().status(status).header("location", "/there").body(Body::from(body));
        response.expect("the response is well-formed")
    }
    let paths = ["/204", "/empty", "/binary", "/303"];
    let routes =
        paths.iter().fold(Router::<Shop>::new(), |routes, path| routes.route(path, post(shaped)));
    let world = World::setup().routes(routes).start().await?;
    for path in paths {
        let send = || world.client.post(path).key(path).send();
        let (first, retry) = (send().await?, send().await?);
        assert_eq!((retry.is_replayed(), retry.answer()), (true, first.answer()), "{path}");
        assert_eq!(retry.header("content-length"), first.header("content-length"), "{path}");
        assert_eq!(retry.header("location"), Some("/there"));
    }
    // On the wire too, where only the markers are new.
    let raw = |path| {
        world.client.exchange(raw_post(
            path,
            format!("Idempotency-Key: raw-{}\r\n", &path[1..]).as_bytes(),
            b"",
        ))
    };
    for path in paths {
        let (first, retry) = (raw(path).await?, raw(path).await?);
        let parts = |answer: &str| {
            let (head, body) = answer.split_once("\r\n\r\n").expect("the head ends");
            let mut lines: Vec<_> =
                head.lines().filter(|line| !line.starts_with("date")).map(str::to_owned).collect();
            lines.retain(|line| {
                !line.starts_with("idempotency-") && !line.starts_with("access-control")
            });
            lines.sort();
            (lines, body.to_owned())
        };
        assert_eq!(parts(&first), parts(&retry), "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn rule_19_client_errors_of_the_handler_are_stored_and_replayed() -> anyhow::Result<()> {
    let world = World::new().await?;
    for status in ["400", "402", "404", "409", "410", "415", "422", "451"] {
        let first = world.pay(status).header("x-status", status).send().await?;
        let retry = world.pay(status).send().await?;
        assert_eq!(first.status.to_string(), status);
        assert_eq!(
            (retry.is_replayed(), retry.answer(), world.effects(status)),
            (true, first.answer(), 1)
        );
    }
    Ok(())
}

#[tokio::test]
async fn rule_20_what_is_refused_before_something_is_done_is_not_stored() -> anyhow::Result<()> {
    let world = World::new().await?;
    for status in ["425", "429", "401", "403", "413"] {
        let first = world.pay(status).header("x-status", status).send().await?;
        assert_eq!(
            (first.status.to_string().as_str(), first.header("idempotency-key-expires")),
            (status, None)
        );
        assert_eq!(world.state(status).await?, None, "{status}");
        let retry = world.pay(status).send().await?;
        assert_eq!(
            (retry.status, retry.is_replayed(), world.effects(status)),
            (201, false, 2),
            "{status}"
        );
        assert!(world.pay(status).send().await?.is_replayed());
    }
    Ok(())
}

/// The answer of another service that has such a layer too, as a gateway passes it on.
async fn passed_on(State(shop): State<Shop>, request: Request) -> Response<Body> {
    shop.effect("asked");
    let (status, body) = match request.uri().path() {
        "/refused" => (429, Body::empty()),
        "/failed" => (502, Body::empty()),
        _ => (200, Body::from_stream(stream::iter([Ok::<_, std::io::Error>("piece")]))),
    };
    let answer = Response::builder()
        .status(status)
        .header("idempotency-key-expires", "Fri, 31 Dec 9999 23:59:59 GMT");
    answer.body(body).expect("the response is well-formed")
}

#[tokio::test]
async fn rule_58_an_answer_that_is_not_kept_promises_nothing_in_the_name_of_another_service()
-> anyhow::Result<()> {
    let routes = Router::new().route("/{*path}", post(passed_on));
    let world = World::setup().routes(routes).start().await?;
    for path in ["/refused", "/failed", "/pieces"] {
        let first = world.client.post(path).key(path).send().await?;
        assert_eq!(first.header("idempotency-key-expires"), None, "{path}");
    }
    let replay = world.client.post("/pieces").key("/pieces").send().await?;
    let lifetime = replay.header("idempotency-key-expires");
    assert!(
        replay.is_replayed() && lifetime.is_some_and(|date| !date.contains("9999")),
        "{replay:?}"
    );
    Ok(())
}

#[tokio::test]
async fn rule_21_the_policy_is_a_function_of_status_and_route() -> anyhow::Result<()> {
    let stripe = World::with(IdempotencyLayer::stripe).await?;
    for status in ["408", "501", "502", "503", "504"] {
        stripe.pay(status).header("x-status", status).send().await?;
        let retry = stripe.pay(status).send().await?;
        assert_eq!(
            (retry.status, retry.header("idempotency-problem")),
            (409, Some("uncertain")),
            "{status}"
        );
        assert_eq!(stripe.effects(status), 1, "{status}");
    }
    for (status, stored) in [("500", true), ("402", true), ("429", false)] {
        let first = stripe.pay(status).header("x-status", status).send().await?;
        let retry = stripe.pay(status).send().await?;
        assert_eq!(first.status.to_string(), status);
        assert_eq!(
            (retry.is_replayed(), stripe.effects(status)),
            (stored, if stored { 1 } else { 2 }),
            "{status}"
        );
        assert_eq!(retry.status == first.status, stored);
    }

    let world = World::with(|layer| {
        layer.with_on_status(|status, request| {
            match (request.uri.path(), request.method.as_str(), status.as_u16()) {
                ("/refund", "POST", 503) => OnStatus::Store,
                (_, _, 402 | 503) => OnStatus::Release,
                (_, _, 409) => OnStatus::Hold,
                (_, _, _) => OnStatus::standard(status),
            }
        })
    })
    .await?;
    for (key, path, status, replayed, runs) in [
        ("refund", "/refund", "503", true, 1),
        ("pay", "/pay", "503", false, 2),
        ("declined", "/pay", "402", false, 2),
        ("missing", "/pay", "404", true, 1),
    ] {
        let first = world.client.post(path).key(key).header("x-status", status).send().await?;
        let retry = world.client.post(path).key(key).send().await?;
        assert_eq!(first.status.to_string(), status);
        assert_eq!((retry.is_replayed(), world.effects(key)), (replayed, runs), "{key}");
    }
    let conflict = world.pay("conflict").header("x-status", "409").send().await?;
    assert_eq!((conflict.status, conflict.json()?["key"].as_str()), (409, Some("conflict")));
    world.pay("conflict").send().await?.assert_problem(409, "uncertain")?;
    assert_eq!(world.effects("conflict"), 1);
    Ok(())
}

#[tokio::test]
async fn rule_22_what_is_refused_before_the_handler_leaves_the_key_free() -> anyhow::Result<()> {
    async fn refuse(request: Request, next: Next) -> Response<Body> {
        let status =
            request.headers().get("x-refused").and_then(|value| value.to_str().ok()?.parse().ok());
        match status.and_then(|status| StatusCode::from_u16(status).ok()) {
            Some(status) => status.into_response(),
            None => next.run(request).await,
        }
    }
    async fn limited(State(shop): State<Shop>, request: Request) -> Response<Body> {
        match axum::body::to_bytes(request.into_body(), 10).await {
            Ok(_) => {
                shop.effect("small");
                StatusCode::CREATED.into_response()
            }
            Err(_) => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        }
    }
    let world = World::setup()
        .routes(Router::new().route("/limited", post(limited)))
        .layer(|layer| layer.with_max_request_body(1_000))
        .around(|router| router.layer(from_fn(refuse)))
        .start()
        .await?;
    for status in ["401", "403", "429", "400"] {
        let refused = world.pay(status).header("x-refused", status).send().await?;
        assert_eq!((refused.status.to_string().as_str(), world.records().await?), (status, 0));
    }
    let large = world.pay("413").body("x".repeat(1_001)).send().await?;
    large.assert_problem(413, "too-large")?;
    // Behind the layer, in what reads the body for the handler.
    let large = world.client.post("/limited").key("inner").body("x".repeat(11)).send().await?;
    assert_eq!((large.status, world.records().await?), (413, 0));
    for status in ["401", "403", "429", "400", "413"] {
        assert_eq!((world.pay(status).send().await?.status, world.effects(status)), (201, 1));
    }
    let small = world.client.post("/limited").key("inner").body("small").send().await?;
    assert_eq!((small.status, world.effects("small")), (201, 1));
    assert_eq!(world.client.request(Method::GET, "/pay").send().await?.status, 201);
    Ok(())
}
