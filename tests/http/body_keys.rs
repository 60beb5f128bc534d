//! Keys in the body: what the layer cannot read there, a handler may, and it never runs unprotected
//! for that.

use idempotency::http::{IdempotencyLayer, RequestFingerprint, Scope};
use idempotency::store::MemoryStore;
use idempotency::{ErrorKind, Idempotency};

use crate::world::World;

async fn world() -> anyhow::Result<World> {
    World::with(|layer| layer.with_key_from_body("/id").with_optional_key()).await
}

/// The request is refused, and the handler has not run.
async fn assert_malformed(
    world: &World,
    content_type: Option<&'static str>,
    body: Vec<u8>,
) -> anyhow::Result<()> {
    let shown = body.escape_ascii().to_string();
    let request = world.client.post("/pay").body(body);
    let request = match content_type {
        Some(content_type) => request.header("content-type", content_type),
        None => request,
    };
    let reply = request.send().await?;
    assert_eq!((reply.status, world.effects("none")), (400, 0), "{content_type:?} {shown:.60}");
    reply.assert_problem(400, "malformed")?;
    Ok(())
}

#[tokio::test]
async fn rule_11_a_body_that_cannot_be_read_for_its_key_is_malformed() -> anyhow::Result<()> {
    let world = world().await?;
    let ignored = |value: &str| format!(r#"{{"id":"abc","ignored":{value}}}"#).into_bytes();
    let utf_16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    let readable = r#"{"id":"abc"}"#;
    for body in [
        ignored(&format!("{}{}", "[".repeat(200), "]".repeat(200))),
        ignored(&format!("{}1{}", r#"{"a":"#.repeat(200), "}".repeat(200))),
        ignored("1e999"),
        ignored("-1E+400"),
        ignored(r#""\ud800""#),
        ignored(r#""\udc00\ud800""#),
        // As they are in Latin-1, and the surrogate that UTF-8 does not have.
        b"{\"id\":\"abc\",\"ignored\":\"\xe9\"}".to_vec(),
        b"{\"id\":\"abc\",\"ignored\":\"\xed\xa0\x80\"}".to_vec(),
        // What lenient readers take.
        format!("\u{feff}{readable}").into_bytes(),
        utf_16(readable),
        [&b"\xff\xfe"[..], &utf_16(readable)].concat(),
        format!("{readable} {readable}").into_bytes(),
        format!("{readable}\n{readable}\n").into_bytes(),
        format!("{readable}garbage").into_bytes(),
        format!("{readable}\0").into_bytes(),
        format!("\u{a0}{readable}").into_bytes(),
        format!(")]}}',\n{readable}").into_bytes(),
        br#"{"id":"abc",}"#.to_vec(),
        br#"{"id":"abc" /* a comment */}"#.to_vec(),
        b"// a comment\n{\"id\":\"abc\"}".to_vec(),
        br#"{id:"abc"}"#.to_vec(),
        b"{'id':'abc'}".to_vec(),
        ignored("NaN"),
        ignored("-Infinity"),
        ignored("01"),
        ignored("+1"),
        ignored("0x1"),
        ignored("1."),
        ignored(".5"),
        ignored("\"\t\""),
        ignored(r#""\x41""#),
        ignored("True"),
        // One of the two is taken, and readers differ in which.
        br#"{"id":"abc","id":"def"}"#.to_vec(),
        br#"{"id":null,"id":"abc"}"#.to_vec(),
        br#"{"id":"abc","\u0069d":null}"#.to_vec(),
        b"id=abc&amount=1".to_vec(),
        b"--x\r\nContent-Disposition: form-data; name=\"id\"\r\n\r\nabc\r\n--x--\r\n".to_vec(),
        b"<id>abc</id>".to_vec(),
        b"\x81\xa2id\xa3abc".to_vec(),
        b" ".to_vec(),
        b"{".to_vec(),
    ] {
        assert_malformed(&world, None, body.clone()).await?;
        assert_malformed(&world, Some("application/json"), body).await?;
    }
    assert_eq!(world.records().await?, 0);
    Ok(())
}

#[tokio::test]
async fn rule_11_a_key_of_another_type_or_in_another_place_is_malformed() -> anyhow::Result<()> {
    let world = world().await?;
    for body in [
        r#"{"id":7}"#,
        r#"{"id":true}"#,
        r#"{"id":["abc"]}"#,
        r#"{"id":{"id":"abc"}}"#,
        r#"{"id":""}"#,
        r#"{"id":" "}"#,
        r#"{"id":"é"}"#,
        r#"{"id":"a\u0000b"}"#,
        // Structs are read from arrays too, and enums from what is no object.
        r#"["abc",100]"#,
        r#"[{"id":"abc"}]"#,
        "[]",
        r#""abc""#,
        "1",
        "true",
    ] {
        assert_malformed(&world, Some("application/json"), body.into()).await?;
    }
    let nested =
        World::with(|layer| layer.with_key_from_body("/request/id").with_optional_key()).await?;
    for body in [
        r#"{"request":["abc"]}"#,
        r#"{"request":"abc"}"#,
        r#"{"request":[{"id":"abc"}]}"#,
        r#"{"request":7}"#,
    ] {
        assert_malformed(&nested, Some("application/json"), body.into()).await?;
    }
    Ok(())
}

/// A form can be read as JSON too, and holds a key all the same.
#[tokio::test]
async fn rule_11_of_other_types_only_an_empty_body_has_no_key() -> anyhow::Result<()> {
    let world = world().await?;
    let content_types = [
        "application/x-www-form-urlencoded",
        "Application/X-WWW-Form-Urlencoded; charset=utf-8",
        "multipart/form-data; boundary=x",
        "text/plain",
        "application/cbor",
        "application/x-ndjson",
        "application/json-seq",
        "application/octet-stream",
        "json",
        "",
    ];
    for content_type in content_types {
        for body in ["id=abc", r#"{"x":"&id=abc&"}"#, r#""&id=abc&""#, "{}", "null"] {
            assert_malformed(&world, Some(content_type), body.into()).await?;
        }
    }
    let two = world
        .client
        .post("/pay")
        .header("content-type", "application/json")
        .header("content-type", "text/plain");
    two.body("{}").send().await?.assert_problem(400, "malformed")?;
    for content_type in content_types {
        let empty = world.client.post("/pay").header("content-type", content_type).body("");
        assert_eq!(empty.send().await?.status, 201, "{content_type}");
    }
    assert_eq!((world.effects("none"), world.records().await?), (content_types.len(), 0));
    // Where there is a key it counts, whatever the body calls itself.
    for content_type in content_types {
        let request = || {
            world.client.post("/pay").header("content-type", content_type).body(r#"{"id":"abc"}"#)
        };
        assert!([201, 422].contains(&request().send().await?.status));
    }
    assert_eq!(world.effects("abc"), 1);
    Ok(())
}

#[tokio::test]
async fn rule_11_a_compressed_body_has_no_key_only_if_it_is_empty() -> anyhow::Result<()> {
    let world = world().await?;
    for encoding in ["gzip", "br", "zstd", "deflate", "GZIP, br", "identity, gzip", "unheard-of"] {
        for body in [&b"\x1f\x8b\x08\0"[..], b"{}", b"1"] {
            let request = world.client.post("/pay").header("content-type", "application/json");
            let reply =
                request.header("content-encoding", encoding).body(body.to_vec()).send().await?;
            assert_eq!(reply.status, 400, "{encoding} {body:?}");
            reply.assert_problem(400, "malformed")?;
        }
    }
    assert_eq!((world.effects("none"), world.records().await?), (0, 0));
    let plain =
        |encoding| world.client.post("/pay").header("content-encoding", encoding).body("{}").send();
    assert_eq!((plain("identity").await?.status, plain("").await?.status), (201, 201));
    let empty = world.client.post("/pay").header("content-encoding", "gzip").body("");
    assert_eq!((empty.send().await?.status, world.effects("none")), (201, 3));
    Ok(())
}

#[tokio::test]
async fn rule_11_a_body_that_says_that_there_is_no_key_runs_every_time() -> anyhow::Result<()> {
    let world = world().await?;
    let bodies = [
        "",
        "{}",
        r#" {"a":{"id":"abc"}} "#,
        r#"{"id":null}"#,
        r#"{"ID":"abc"}"#,
        "null",
        r#"{"a":1,"a":2}"#,
    ];
    for body in bodies {
        for content_type in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/vnd.api+json",
            "text/json",
        ] {
            let request = world.client.post("/pay").header("content-type", content_type).body(body);
            assert_eq!(request.send().await?.status, 201, "{content_type} {body}");
        }
        assert_eq!(world.client.post("/pay").body(body).send().await?.status, 201, "{body}");
    }
    assert_eq!((world.effects("none"), world.records().await?), (5 * bodies.len(), 0));
    let nested =
        World::with(|layer| layer.with_key_from_body("/requests/0/id").with_optional_key()).await?;
    for body in [
        r#"{"requests":null}"#,
        r#"{"requests":[]}"#,
        r#"{"requests":[null]}"#,
        r#"{"requests":[{}]}"#,
    ] {
        assert_eq!(nested.client.post("/pay").body(body).send().await?.status, 201, "{body}");
    }
    Ok(())
}

/// A client that sends its key in the header believes that it is protected.
#[tokio::test]
async fn rule_11_a_key_in_the_header_of_a_service_that_looks_into_the_body_is_malformed()
-> anyhow::Result<()> {
    let world = world().await?;
    for body in ["", "{}", r#"{"id":null}"#] {
        world.pay("abc").body(body).send().await?.assert_problem(400, "malformed")?;
    }
    let both = world.pay("abc").body(r#"{"id":"def"}"#).send().await?;
    assert_eq!((both.status, world.effects("none"), world.effects("def")), (201, 0, 1));
    Ok(())
}

#[test]
fn a_place_that_is_no_pointer_is_refused_where_the_options_are_looked_at() {
    let layer = || IdempotencyLayer::new(Idempotency::new(MemoryStore::new()), Scope::global());
    let fields = |pointer: &str| RequestFingerprint::fields(["/amount", pointer]);
    for pointer in ["id", "id/0", " /id", "#/id", "$.id"] {
        for layer in [
            layer().with_key_from_body(pointer),
            layer().with_fingerprint(fields(pointer)),
            layer().with_fingerprint(RequestFingerprint::body().formerly(fields(pointer))),
        ] {
            let error = layer.checked().expect_err("it leads nowhere");
            assert_eq!(error.kind(), ErrorKind::Config, "{pointer}");
            assert!(error.to_string().contains(pointer), "{error}");
        }
    }
    for pointer in ["", "/", "/id", "/request/id", "/0"] {
        let checked =
            layer().with_key_from_body(pointer).with_fingerprint(fields(pointer)).checked();
        assert!(checked.is_ok(), "{pointer}: {checked:?}");
    }
}
