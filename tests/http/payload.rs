//! Rules 27 to 35: what a retry must repeat.

use axum::http::Method;
use idempotency::OnCrash;
use idempotency::http::RequestFingerprint;

use crate::world::World;

#[tokio::test]
async fn rule_27_the_same_key_with_another_payload_is_refused() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.pay("abc").body(r#"{"amount":1}"#).send().await?;
    for other in [r#"{"amount":2}"#, r#"{"amount": 1}"#, ""] {
        world.pay("abc").body(other).send().await?.assert_problem(422, "mismatch")?;
    }
    assert_eq!(world.effects("abc"), 1);
    Ok(())
}

#[tokio::test]
async fn rule_27_a_request_that_may_run_again_is_still_the_same_request() -> anyhow::Result<()> {
    let world = World::with(|layer| layer.with_on_crash(OnCrash::Retry)).await?;
    let first = world.pay("abc").header("x-status", "504").body("one").send().await?;
    assert_eq!(first.status, 504);
    world.pay("abc").body("two").send().await?.assert_problem(422, "mismatch")?;
    let retry = world.pay("abc").body("one").send().await?;
    assert_eq!((retry.status, retry.is_replayed(), world.effects("abc")), (201, false, 2));
    Ok(())
}

#[tokio::test]
async fn rule_28_after_a_mismatch_the_original_still_replays() -> anyhow::Result<()> {
    let world = World::new().await?;
    let first = world.pay("abc").body("one").send().await?;
    world.pay("abc").body("two").send().await?.assert_problem(422, "mismatch")?;
    let retry = world.pay("abc").body("one").send().await?;
    assert_eq!((retry.is_replayed(), retry.answer(), world.effects("abc")), (true, first.answer(), 1));
    Ok(())
}

#[tokio::test]
async fn rule_29_a_mismatch_outranks_a_request_in_progress() -> anyhow::Result<()> {
    let world = World::new().await?;
    let first = world.pay("abc").header("x-wait", "1").body("one").spawn();
    world.entered("abc").await?;
    for _ in 0..3 {
        world.pay("abc").body("two").send().await?.assert_problem(422, "mismatch")?;
        world.pay("abc").body("one").send().await?.assert_problem(409, "in-progress")?;
    }
    world.shop.gate.open();
    assert_eq!((first.reply().await?.status, world.effects("abc")), (201, 1));
    Ok(())
}

#[tokio::test]
async fn rule_30_another_method_or_path_never_replays_the_first() -> anyhow::Result<()> {
    let world = World::with(|layer| layer.with_methods([Method::POST, Method::PUT])).await?;
    let first = world.pay("abc").send().await?;
    world.client.post("/refund").key("abc").send().await?.assert_problem(422, "mismatch")?;
    world.client.request(Method::PUT, "/pay").key("abc").send().await?.assert_problem(422, "mismatch")?;
    assert_eq!((world.pay("abc").send().await?.answer(), world.effects("abc")), (first.answer(), 1));
    Ok(())
}

#[tokio::test]
async fn rule_31_the_query_counts_unless_it_is_excluded() -> anyhow::Result<()> {
    let mut world = World::new().await?;
    let fingerprint = RequestFingerprint::body().without_query().version(9);
    let without = world.another_server(|layer| layer.with_fingerprint(fingerprint)).await?;
    let usual = world.client.clone();
    for (client, key, replays) in [(usual, "with", false), (without, "without", true)] {
        let send = |path| client.post(path).key(key).send();
        let first = send("/pay?currency=EUR&amount=1").await?;
        for other in ["/pay?currency=USD&amount=1", "/pay?amount=1&currency=EUR", "/pay"] {
            let reply = send(other).await?;
            if replays {
                assert_eq!((reply.is_replayed(), reply.answer()), (true, first.answer()), "{other}");
            } else {
                reply.assert_problem(422, "mismatch")?;
            }
        }
        assert!(send("/pay?currency=EUR&amount=1").await?.is_replayed());
        assert_eq!(world.effects(key), 1);
    }
    Ok(())
}

#[tokio::test]
async fn rule_32_canonical_json_ignores_spelling_but_not_duplicate_members() -> anyhow::Result<()> {
    let world = World::with(|layer| layer.with_fingerprint(RequestFingerprint::json())).await?;
    let first = r#"{"amount":100,"to":{"name":"é","tags":[1,2]},"note":null}"#;
    world.pay("abc").body(first).send().await?;
    for same in [
        r#"{"note":null,"to":{"tags":[1,2],"name":"é"},"amount":100}"#,
        "{ \"amount\" : 1e2,\r\n\t\"to\": {\"name\":\"\\u00e9\",\"tags\":[1.0,2]},\"note\":null}\n",
        r#"{"amount":100.00,"to":{"name":"\u00E9","tags":[1,2.0e0]},"note":null}"#,
    ] {
        assert!(world.pay("abc").body(same).send().await?.is_replayed(), "{same}");
    }
    for other in [
        r#"{"amount":100,"to":{"name":"é","tags":[2,1]},"note":null}"#,
        r#"{"amount":100,"to":{"name":"é","tags":[1,2]}}"#,
        r#"{"amount":"100","to":{"name":"é","tags":[1,2]},"note":null}"#,
        r#"{"amount":1,"amount":100,"to":{"name":"é","tags":[1,2]},"note":null}"#,
        r#"{"amount":100,"amount":100,"to":{"name":"é","tags":[1,2]},"note":null}"#,
    ] {
        world.pay("abc").body(other).send().await?.assert_problem(422, "mismatch")?;
    }
    // Of duplicates every byte counts, and large integers are not rounded into one.
    for (key, one, other) in [
        ("duplicates", r#"{"a":1,"a":2}"#, r#"{"a":2,"a":1}"#),
        ("integers", r#"{"id":9007199254740992}"#, r#"{"id":9007199254740993}"#),
        ("larger ones", r#"{"id":18446744073709551616}"#, r#"{"id":18446744073709551617}"#),
        ("in name only", r#"{"amount":1}"#, r#"{"$serde_json::private::RawValue":"{\"amount\":1}"}"#),
    ] {
        world.pay(key).body(one).send().await?;
        assert!(world.pay(key).body(one).send().await?.is_replayed());
        world.pay(key).body(other).send().await?.assert_problem(422, "mismatch")?;
    }
    Ok(())
}

/// What a string says is no JSON of the body. Taken for some, this is deeper than the stack of a server.
#[tokio::test]
async fn rule_32_json_in_strings_is_no_part_of_the_body() -> anyhow::Result<()> {
    let world = World::with(|layer| layer.with_fingerprint(RequestFingerprint::json())).await?;
    let mut body = "1".to_owned();
    for _ in 0..12 {
        let text = serde_json::to_string(&format!("{}{body}{}", "[".repeat(120), "]".repeat(120)))?;
        body = format!(r#"{{"$serde_json::private::RawValue":{text}}}"#);
    }
    let first = world.pay("abc").body(body.clone()).send().await?;
    let retry = world.pay("abc").body(body).send().await?;
    assert_eq!((first.status, retry.is_replayed(), world.effects("abc")), (201, true, 1));
    Ok(())
}

#[tokio::test]
async fn rule_33_with_selected_fields_only_those_count() -> anyhow::Result<()> {
    let fingerprint = RequestFingerprint::fields(["/amount", "/card/number"]);
    let world = World::with(|layer| layer.with_fingerprint(fingerprint)).await?;
    world.pay("abc").body(r#"{"amount":1,"card":{"number":"42"},"sent_at":1}"#).send().await?;
    for same in
        [r#"{"sent_at":2,"amount":1.0,"card":{"number":"42","name":"x"}}"#, r#"{"amount":1,"card":{"number":"42"}}"#]
    {
        assert!(world.pay("abc").body(same).send().await?.is_replayed(), "{same}");
    }
    for other in [
        r#"{"amount":2,"card":{"number":"42"},"sent_at":1}"#,
        r#"{"amount":1,"card":{"number":"43"},"sent_at":1}"#,
        r#"{"amount":1,"card":{}}"#,
        r#"{"amount":1,"amount":1,"card":{"number":"42"}}"#,
        "amount=1",
    ] {
        world.pay("abc").body(other).send().await?.assert_problem(422, "mismatch")?;
    }
    assert_eq!(world.effects("abc"), 1);
    Ok(())
}

#[tokio::test]
async fn what_counts_can_be_computed_by_the_service() -> anyhow::Result<()> {
    let fingerprint = RequestFingerprint::custom(|request, body| {
        let version = request.headers.get("x-version").map(|value| value.as_bytes().to_vec());
        [version.unwrap_or_default(), body.first().copied().into_iter().collect()].concat()
    });
    let world = World::with(|layer| layer.with_fingerprint(fingerprint)).await?;
    world.pay("abc").header("x-version", "1").body("a first").send().await?;
    assert!(world.pay("abc").header("x-version", "1").body("a second").send().await?.is_replayed());
    world.pay("abc").header("x-version", "2").body("a first").send().await?.assert_problem(422, "mismatch")?;
    world.pay("abc").header("x-version", "1").body("b").send().await?.assert_problem(422, "mismatch")?;
    Ok(())
}

#[tokio::test]
async fn rule_34_different_keys_with_the_same_body_both_run() -> anyhow::Result<()> {
    let world = World::new().await?;
    let (one, two) = (world.pay("one").body("same").send().await?, world.pay("two").body("same").send().await?);
    assert!(!one.is_replayed() && !two.is_replayed() && one.body != two.body);
    assert_eq!((world.effects("one"), world.effects("two")), (1, 1));
    Ok(())
}

#[tokio::test]
async fn rule_35_a_new_fingerprint_version_causes_no_false_mismatch() -> anyhow::Result<()> {
    let mut world = World::new().await?;
    let first = world.pay("abc").body(r#"{"amount":1,"note":"x"}"#).send().await?;
    let later = [
        RequestFingerprint::json(),
        RequestFingerprint::fields(["/amount"]),
        RequestFingerprint::custom(|_, body| body.to_vec()),
        RequestFingerprint::body().without_query().version(7),
    ];
    for fingerprint in later {
        let client = world.another_server(|layer| layer.with_fingerprint(fingerprint)).await?;
        let retry = client.post("/pay").key("abc").body(r#"{"amount":1,"note":"x"}"#).send().await?;
        assert_eq!((retry.is_replayed(), retry.answer()), (true, first.answer()));
        // Among themselves the new ones are compared.
        let key = uuid::Uuid::new_v4().to_string();
        client.post("/pay").key(&key).body(r#"{"amount":1}"#).send().await?;
        client.post("/pay").key(&key).body(r#"{"amount":2}"#).send().await?.assert_problem(422, "mismatch")?;
    }
    assert_eq!(world.effects("abc"), 1);
    Ok(())
}
