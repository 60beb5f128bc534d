//! Rules 1 to 12: keys.

use axum::Router;
use axum::http::Method;
use idempotency::http::{HeaderNames, IdempotencyLayer, KeyFormat, RequestFingerprint};
use idempotency::store::Operation;

use crate::client::raw_post;
use crate::world::{Server, World, router};

#[tokio::test]
async fn rule_01_a_quoted_string_is_the_key_after_unescaping() -> anyhow::Result<()> {
    let world = World::new().await?;
    for (line, key) in
        [("\"abc\"", "abc"), (r#""a\"b\\c""#, r#"a"b\c"#), ("\"a,b;c d\"", "a,b;c d")]
    {
        let reply = world.client.post("/pay").header("idempotency-key", line).send().await?;
        assert_eq!(reply.status, 201, "{line}");
        assert_eq!(reply.json()?["key"], key);
        assert_eq!(world.effects(key), 1);
    }
    Ok(())
}

#[tokio::test]
async fn rule_02_a_bare_key_names_the_same_record_unless_quotes_are_required() -> anyhow::Result<()>
{
    let mut world = World::new().await?;
    let first = world.client.post("/pay").header("idempotency-key", "abc").send().await?;
    let second = world.pay("abc").send().await?;
    assert!(!first.is_replayed() && second.is_replayed());
    assert_eq!((first.answer(), world.effects("abc")), (second.answer(), 1));

    let strict = world.another_server(IdempotencyLayer::require_structured_field).await?;
    let refused = strict.post("/pay").header("idempotency-key", "abc").send().await?;
    refused.assert_problem(400, "malformed")?;
    assert!(strict.post("/pay").key("abc").send().await?.is_replayed());
    Ok(())
}

#[tokio::test]
async fn rule_03_an_empty_or_blank_key_is_refused_and_leaves_nothing() -> anyhow::Result<()> {
    let world = World::with(IdempotencyLayer::with_optional_key).await?;
    for line in ["", " ", "\"\"", "\"   \""] {
        let reply = world.client.post("/pay").header("idempotency-key", line).send().await?;
        reply.assert_problem(400, "malformed")?;
    }
    assert_eq!(world.shop.effects.lines()?.len(), 0);
    assert_eq!((world.records().await?, world.store.requests(Operation::Claim)), (0, 0));
    Ok(())
}

#[tokio::test]
async fn rule_04_keys_of_255_octets_are_accepted_and_longer_ones_are_not() -> anyhow::Result<()> {
    let mut world = World::new().await?;
    let (longest, longer) = ("k".repeat(255), "k".repeat(256));
    assert_eq!(world.pay(&longest).send().await?.status, 201);
    world.pay(&longer).send().await?.assert_problem(400, "malformed")?;
    // The quote and its escape are one octet of the key.
    let escaped = format!("{}\\\"", "k".repeat(254));
    assert_eq!(world.pay(&escaped).send().await?.status, 201);

    let other = world.another_server(|layer| layer.with_max_key_length(300)).await?;
    assert_eq!(other.post("/pay").key(&longer).send().await?.status, 201);
    let other = world.another_server(|layer| layer.with_max_key_length(10)).await?;
    other.post("/pay").key("eleven-long").send().await?.assert_problem(400, "malformed")?;
    Ok(())
}

#[tokio::test]
async fn rule_05_control_characters_non_ascii_and_unbalanced_quotes_are_refused()
-> anyhow::Result<()> {
    let world = World::with(IdempotencyLayer::with_optional_key).await?;
    for value in [
        &b"\"abc"[..],
        b"abc\"",
        b"\"a\"b\"",
        b"\"a\\b\"",
        b"a b",
        b"a\tb",
        b"\"a\tb\"",
        b"\"a\x01b\"",
        b"a\x01b",
        b"\"a\x7fb\"",
        b"\xe4",
        b"\"\xc3\xa4\"",
    ] {
        let headers = [b"Idempotency-Key: ", value, b"\r\n"].concat();
        let answer = world.client.exchange(raw_post("/pay", &headers, b"{}")).await?;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{}: {answer}", value.escape_ascii());
    }
    assert_eq!((world.shop.effects.lines()?.len(), world.records().await?), (0, 0));
    Ok(())
}

#[tokio::test]
async fn rule_06_two_header_lines_or_a_list_are_refused() -> anyhow::Result<()> {
    let world = World::with(IdempotencyLayer::with_optional_key).await?;
    let two = "Idempotency-Key: \"a\"\r\nidempotency-key: \"a\"\r\n";
    for headers in [
        two,
        "Idempotency-Key: a,b\r\n",
        "Idempotency-Key: \"a\", \"b\"\r\n",
        "Idempotency-Key: (\"a\")\r\n",
    ] {
        let answer = world.client.exchange(raw_post("/pay", headers.as_bytes(), b"{}")).await?;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.contains("#malformed"),
            "{headers}: {answer}"
        );
    }
    assert_eq!((world.shop.effects.lines()?.len(), world.records().await?), (0, 0));
    Ok(())
}

#[tokio::test]
async fn rule_07_parameters_never_make_another_record() -> anyhow::Result<()> {
    let world = World::new().await?;
    let first = world.pay("abc").send().await?;
    for line in ["\"abc\";a=1", "\"abc\"; b; c=\"x\"", "\"abc\";a=2"] {
        let reply = world.client.post("/pay").header("idempotency-key", line).send().await?;
        assert_eq!((reply.is_replayed(), reply.answer()), (true, first.answer()), "{line}");
    }
    assert_eq!((world.effects("abc"), world.records().await?), (1, 1));
    Ok(())
}

#[tokio::test]
async fn rule_08_a_key_format_is_enforced_before_any_lookup() -> anyhow::Result<()> {
    let mut world = World::with(|layer| layer.with_key_format(KeyFormat::uuid())).await?;
    let uuid = "0191a3b0-7c8f-7d7e-8f3a-2b1c0d9e8f7a";
    for key in [
        "abc",
        &uuid[1..],
        "{0191a3b0-7c8f-7d7e-8f3a-2b1c0d9e8f7a}",
        "0191a3b07c8f7d7e8f3a2b1c0d9e8f7a",
    ] {
        world.pay(key).send().await?.assert_problem(400, "malformed")?;
    }
    let long =
        world.another_server(|layer| layer.with_key_format(KeyFormat::min_length(16))).await?;
    long.post("/pay").key("fifteen-octets-").send().await?.assert_problem(400, "malformed")?;
    let format = KeyFormat::matching(|key| key.starts_with("order-"));
    let ours = world.another_server(|layer| layer.with_key_format(format)).await?;
    ours.post("/pay").key("cart-1").send().await?.assert_problem(400, "malformed")?;
    assert_eq!((world.store.requests(Operation::Claim), world.shop.effects.lines()?.len()), (0, 0));

    assert_eq!(world.pay(uuid).send().await?.status, 201);
    assert_eq!(long.post("/pay").key("sixteen-octets--").send().await?.status, 201);
    assert_eq!(ours.post("/pay").key("order-1").send().await?.status, 201);
    Ok(())
}

#[tokio::test]
async fn rule_09_keys_are_case_sensitive_and_nothing_is_trimmed_inside_quotes() -> anyhow::Result<()>
{
    let world = World::new().await?;
    for key in ["abc", "Abc", " abc", "abc ", "a  bc"] {
        let reply = world.pay(key).send().await?;
        assert_eq!((reply.status, reply.is_replayed()), (201, false), "{key:?}");
        assert_eq!(reply.json()?["key"], key);
    }
    assert_eq!(world.records().await?, 5);
    Ok(())
}

#[tokio::test]
async fn rule_10_a_missing_key_is_refused_with_a_type_that_leads_to_documentation()
-> anyhow::Result<()> {
    let mut world = World::new().await?;
    let reply = world.client.post("/pay").send().await?;
    reply.assert_problem(400, "missing")?;
    assert!(
        reply.json()?["type"]
            .as_str()
            .is_some_and(|address| address.starts_with("https://docs.rs/idempotency/"))
    );

    let own =
        world.another_server(|layer| layer.with_documentation("https://shop.example/keys")).await?;
    let reply = own.post("/pay").send().await?;
    reply.assert_problem(400, "missing")?;
    assert_eq!(reply.json()?["type"], "https://shop.example/keys#missing");
    assert_eq!(world.shop.effects.lines()?.len(), 0);
    Ok(())
}

#[tokio::test]
async fn rule_11_without_a_key_an_optional_one_runs_every_time_and_leaves_nothing()
-> anyhow::Result<()> {
    let world = World::with(IdempotencyLayer::with_optional_key).await?;
    for runs in 1..=3 {
        let reply = world.client.post("/pay").send().await?;
        assert_eq!((reply.status, world.effects("none")), (201, runs));
        let added =
            ["idempotency-replayed", "idempotency-key-expires", "access-control-expose-headers"];
        assert!(added.iter().all(|name| reply.header(name).is_none()), "{reply:?}");
    }
    assert_eq!((world.records().await?, world.store.requests(Operation::Claim)), (0, 0));
    assert!(!world.pay("abc").send().await?.is_replayed());
    assert!(world.pay("abc").send().await?.is_replayed());
    Ok(())
}

/// Where the layer takes keys from another header, or from the body, the client that sends the
/// usual one believes that it is protected.
#[tokio::test]
async fn rule_11_a_key_in_the_usual_header_of_a_service_with_another_one_is_malformed()
-> anyhow::Result<()> {
    let names = HeaderNames::new().with_key("x-request-key")?;
    let optional =
        move |layer: IdempotencyLayer| layer.with_optional_key().with_header_names(names);
    let mut world = World::with(optional.clone()).await?;
    let charge = Method::from_bytes(b"CHARGE")?;
    for method in [Method::POST, charge] {
        let send = || world.client.request(method.clone(), "/pay").key("abc").send();
        send().await?.assert_problem(400, "malformed")?;
    }
    let in_body = optional.clone();
    let in_body = world.another_server(|layer| in_body(layer).with_key_from_body("/id")).await?;
    in_body.post("/pay").key("abc").send().await?.assert_problem(400, "malformed")?;
    assert_eq!((world.shop.effects.lines()?.len(), world.records().await?), (0, 0));

    let pay = || world.pay("abc").header("x-request-key", "def").send();
    assert_eq!((pay().await?.status, pay().await?.is_replayed()), (201, true));
    let both = in_body.post("/pay").key("abc").body(r#"{"id":"ghi"}"#).send().await?;
    assert_eq!((both.status, world.effects("ghi")), (201, 1));
    // Safe methods ignore keys.
    assert_eq!(
        world.client.request(Method::GET, "/pay").body("").key("abc").send().await?.status,
        201
    );

    // The key of a layer in front protects the request.
    let layer = optional(world.layer_of_another().with_operation("inner"));
    let in_front = world.layer_of_another().with_operation("outer");
    let routes = router(&world.shop, Router::new()).layer(layer).layer(in_front);
    let stacked = Server::start(routes).await?;
    let send = || stacked.client().post("/pay").key("front").send();
    assert_eq!((send().await?.status, send().await?.is_replayed()), (201, true));
    assert_eq!(world.effects("front"), 1);
    // So it does where the layer inside takes keys from bodies.
    let in_body = world.layer_of_another().with_operation("in bodies");
    let in_body = in_body.with_optional_key().with_key_from_body("/id");
    let in_front = world.layer_of_another().with_operation("in front of bodies");
    let routes = router(&world.shop, Router::new()).layer(in_body).layer(in_front);
    let stacked = Server::start(routes).await?;
    let client = stacked.client();
    let send = || {
        client
            .post("/pay")
            .header("content-type", "application/json")
            .body("{}")
            .key("other")
            .send()
    };
    assert_eq!((send().await?.status, send().await?.is_replayed()), (201, true));
    Ok(())
}

#[tokio::test]
async fn rule_12_safe_methods_ignore_the_key_and_others_are_guarded_as_asked() -> anyhow::Result<()>
{
    let mut world = World::new().await?;
    let everything =
        [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE];
    let all = world
        .another_server(|layer| layer.with_methods([&everything[..], &[Method::POST]].concat()))
        .await?;
    for (client, guarded) in [
        (world.client.clone(), vec![Method::POST, Method::PATCH]),
        (all, vec![Method::POST, Method::PUT, Method::DELETE]),
    ] {
        for method in [&everything[..], &[Method::POST, Method::PATCH]].concat() {
            let key = uuid::Uuid::new_v4().to_string();
            let send = || client.request(method.clone(), "/pay").body("").key(&key).send();
            assert_eq!(send().await?.status, 201, "{method}");
            assert_eq!(send().await?.is_replayed(), guarded.contains(&method), "{method}");
            if !guarded.contains(&method) {
                assert_eq!(world.state(&key).await?, None, "{method}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn operations_of_two_names_have_records_of_their_own() -> anyhow::Result<()> {
    let mut world = World::with(|layer| layer.with_operation("payments")).await?;
    let refunds = world.another_server(|layer| layer.with_operation("refunds")).await?;
    let again = world.another_server(|layer| layer.with_operation("payments")).await?;
    let first = world.pay("abc").send().await?;
    // Of another request too: the key is a new one there.
    let other = refunds.post("/refund").key("abc").send().await?;
    assert_eq!((other.status, other.is_replayed(), world.effects("abc")), (201, false, 2));
    assert_eq!(again.post("/pay").key("abc").send().await?.answer(), first.answer());
    assert!(refunds.post("/refund").key("abc").send().await?.is_replayed());
    assert_eq!((world.effects("abc"), world.records().await?), (2, 2));
    Ok(())
}

#[tokio::test]
async fn a_key_can_be_a_field_of_the_body() -> anyhow::Result<()> {
    let world = World::with(|layer| {
        layer.with_key_from_body("/request/id").with_fingerprint(RequestFingerprint::json())
    })
    .await?;
    let first =
        world.client.post("/pay").body(r#"{"request":{"id":"abc"},"amount":1}"#).send().await?;
    let retry =
        world.client.post("/pay").body(r#"{"amount":1,"request":{"id":"abc"}}"#).send().await?;
    assert_eq!((first.status, retry.is_replayed(), world.effects("abc")), (201, true, 1));
    for body in ["", "{}", r#"{"request":null}"#, r#"{"request":{"id":null}}"#] {
        world.pay("ignored").body(body).send().await?.assert_problem(400, "missing")?;
    }
    for body in [
        "no JSON",
        r#"{"request":{"id":7}}"#,
        r#"{"request":{"id":"  "}}"#,
        r#"{"request":{"id":"\u0001"}}"#,
        r#"{"request":{"id":"abc","id":"def"}}"#,
        r#"{"request":{"id":"abc"},"request":{"id":"def"}}"#,
    ] {
        world.client.post("/pay").body(body).send().await?.assert_problem(400, "malformed")?;
    }
    // What else is in the body is no concern of the key.
    let other = r#"{"request":{"id":"large"},"amount":1,"amount":18446744073709551617}"#;
    let replies = [
        world.client.post("/pay").body(other).send().await?,
        world.client.post("/pay").body(other).send().await?,
    ];
    assert_eq!(
        (replies[0].status, replies[1].is_replayed(), world.effects("large")),
        (201, true, 1)
    );
    Ok(())
}
