//! Rules 27 to 35: what a retry must repeat.

use axum::http::{HeaderName, Method};
use idempotency::OnCrash;
use idempotency::http::{IdempotencyLayer, OnStatus, RequestFingerprint};

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
    assert_eq!(
        (retry.is_replayed(), retry.answer(), world.effects("abc")),
        (true, first.answer(), 1)
    );
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
    world
        .client
        .request(Method::PUT, "/pay")
        .key("abc")
        .send()
        .await?
        .assert_problem(422, "mismatch")?;
    assert_eq!(
        (world.pay("abc").send().await?.answer(), world.effects("abc")),
        (first.answer(), 1)
    );
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
                assert_eq!(
                    (reply.is_replayed(), reply.answer()),
                    (true, first.answer()),
                    "{other}"
                );
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
        (
            "in name only",
            r#"{"amount":1}"#,
            r#"{"$serde_json::private::RawValue":"{\"amount\":1}"}"#,
        ),
    ] {
        world.pay(key).body(one).send().await?;
        assert!(world.pay(key).body(one).send().await?.is_replayed());
        world.pay(key).body(other).send().await?.assert_problem(422, "mismatch")?;
    }
    Ok(())
}

#[tokio::test]
async fn rule_32_a_body_that_is_not_sent_as_json_counts_with_every_byte() -> anyhow::Result<()> {
    for fingerprint in [RequestFingerprint::json(), RequestFingerprint::fields(["/version"])] {
        let name = format!("{fingerprint:?}");
        let world = World::with(move |layer| layer.with_fingerprint(fingerprint)).await?;
        let pairs = [("1.10", "1.1"), (r#"{"version":1.10}"#, r#"{"version":1.1}"#)];
        for (number, (one, other)) in pairs.into_iter().enumerate() {
            for (headers, counts) in [
                (&[("content-type", "text/plain")][..], true),
                (&[("content-type", "application/x-www-form-urlencoded")], true),
                (&[("content-type", "application/json"), ("content-encoding", "gzip")], true),
                (&[("content-type", "application/json")], false),
                (&[("content-type", "application/problem+json")], false),
                (&[], false),
            ] {
                let send = |body: &'static str| {
                    let request =
                        world.pay(&format!("{number} {headers:?}").replace('"', "")).body(body);
                    headers
                        .iter()
                        .fold(request, |request, (name, value)| request.header(name, value))
                        .send()
                };
                assert_eq!(send(one).await?.status, 201);
                assert!(send(one).await?.is_replayed());
                let other = send(other).await?;
                if counts {
                    other.assert_problem(422, "mismatch")?;
                } else {
                    assert!(other.is_replayed(), "{name} {headers:?}: {other:?}");
                }
            }
        }
    }
    Ok(())
}

/// Each line is one number, in as many spellings.
const ONE_NUMBER: [&[&str]; 6] = [
    &[
        "1",
        "1.0",
        "1.000000000000000000000000000",
        "10e-1",
        "0.1E+1",
        "0.00001e5",
        "1e0",
        "1e-0000000000000000000000",
    ],
    &["0", "-0", "0.0", "-0.000", "0e999999999999999999999", "-0E-999999999999999999999"],
    &["-12.5", "-12.50", "-125e-1", "-0.125e2"],
    &["100000000000000000000000000000001", "1.00000000000000000000000000000001e32"],
    &["1e-400", "10e-401", "0.1e-399"],
    &["1e300", "10e299", "0.00000000000000000000000000001e329"],
];

/// Each line has numbers that readers with floats take for one.
const TWO_NUMBERS: [&[&str]; 6] = [
    &["1.000000000000000001", "1.000000000000000002", "1"],
    &["0.1", "0.10000000000000001", "0.1000000000000000055511151231257827"],
    &["9007199254740992", "9007199254740993", "9007199254740992.5"],
    &["18446744073709551616", "18446744073709551617", "18446744073709551616.01"],
    &[
        "0",
        "1e-400",
        "1e-401",
        "-1e-400",
        "1e-999999999",
        "1e-9999999999999999999999",
        "1e-99999999999999999999999",
    ],
    &["1e300", "1.00000000000000000001e300", "-1e300"],
];

fn ways_to_read_numbers() -> [RequestFingerprint; 2] {
    [RequestFingerprint::json(), RequestFingerprint::fields(["/amount"])]
}

#[tokio::test]
async fn rule_32_the_spelling_of_a_number_does_not_count_and_each_of_its_digits_does()
-> anyhow::Result<()> {
    for fingerprint in ways_to_read_numbers() {
        let world = World::with(|layer| layer.with_fingerprint(fingerprint)).await?;
        let send = |key: String, number: &str| {
            world.pay(&key).body(format!(r#"{{"amount":{number},"note":[{{"x":1}}]}}"#)).send()
        };
        for (line, spellings) in ONE_NUMBER.iter().enumerate() {
            for spelling in *spellings {
                let reply = send(format!("one-{line}"), spelling).await?;
                assert_eq!(
                    (reply.status, reply.is_replayed()),
                    (201, *spelling != spellings[0]),
                    "{spelling}"
                );
            }
            assert_eq!(world.effects(&format!("one-{line}")), 1);
        }
        for (line, numbers) in TWO_NUMBERS.iter().enumerate() {
            for one in *numbers {
                for other in *numbers {
                    let key = format!("two-{line}-{one}-{other}");
                    send(key.clone(), one).await?;
                    let status = if one == other { 201 } else { 422 };
                    assert_eq!(send(key.clone(), other).await?.status, status, "{one} {other}");
                    assert_eq!(world.effects(&key), 1);
                }
            }
        }
    }
    Ok(())
}

/// No number of a client takes memory or time for the zeros that it stands for.
#[tokio::test]
async fn rule_32_a_number_with_a_large_exponent_costs_what_its_text_does() -> anyhow::Result<()> {
    for fingerprint in ways_to_read_numbers() {
        let world = World::with(|layer| layer.with_fingerprint(fingerprint)).await?;
        let many = ["1e999999999", "1e-999999999", "-1e2147483648", "1e-9223372036854775809"]
            .repeat(2_000)
            .join(",");
        let body = format!(r#"{{"amount":[{many}]}}"#);
        world.pay("abc").body(body.clone()).send().await?;
        assert!(world.pay("abc").body(body.clone()).send().await?.is_replayed());
        let other = body.replacen("1e-999999999", "1e-999999998", 1);
        world.pay("abc").body(other).send().await?.assert_problem(422, "mismatch")?;
    }
    Ok(())
}

/// The same bytes are another request where the headers say that they mean something else.
#[tokio::test]
async fn rule_30_what_the_body_is_counts_beside_its_bytes() -> anyhow::Result<()> {
    let ways = [
        RequestFingerprint::body(),
        RequestFingerprint::json(),
        RequestFingerprint::fields(["/amount"]),
        RequestFingerprint::custom(|_, _| Vec::new()),
    ];
    for fingerprint in ways {
        let world = World::with(|layer| layer.with_fingerprint(fingerprint)).await?;
        let send = |key: &str, headers: &[(&'static str, &'static str)]| {
            let request = world.pay(key).body(r#"{"amount":1}"#);
            headers
                .iter()
                .fold(request, |request, (name, value)| request.header(name, value))
                .send()
        };
        let one: [&[(&str, &str)]; 6] = [
            &[("content-type", "application/json")],
            &[("content-type", "application/x-www-form-urlencoded")],
            &[("content-type", "application/vnd.shop.v2+json")],
            &[("content-type", "application/json"), ("content-encoding", "gzip")],
            &[("content-type", "application/json"), ("content-range", "bytes 0-11/24")],
            &[],
        ];
        for (first, these) in one.iter().enumerate() {
            for (second, those) in one.iter().enumerate() {
                let key = format!("{first}-{second}");
                send(&key, these).await?;
                let status = if first == second { 201 } else { 422 };
                assert_eq!(send(&key, those).await?.status, status, "{these:?} {those:?}");
                assert_eq!(world.effects(&key), 1);
            }
        }
        // Spelling is none of it.
        for (number, (one, other)) in [
            ("application/json", "Application/JSON"),
            ("application/json; charset=utf-8", "application/json;Charset=\"UTF-8\""),
            ("text/plain; a=1; b=2", "text/plain;b=2; a=1"),
            ("no type", " no type "),
        ]
        .into_iter()
        .enumerate()
        {
            let key = format!("spelling-{number}");
            send(&key, &[("content-type", one), ("content-encoding", "GZIP")]).await?;
            let retry =
                send(&key, &[("content-type", other), ("content-encoding", "gzip ")]).await?;
            assert!(retry.is_replayed(), "{one} {other}");
        }
        for (number, (one, other)) in [
            ("text/plain; charset=utf-8", "text/plain; charset=utf-16"),
            ("application/x; v=a", "application/x; v=A"),
            ("no type", "no TYPE"),
        ]
        .into_iter()
        .enumerate()
        {
            let key = format!("parameters-{number}");
            send(&key, &[("content-type", one)]).await?;
            assert_eq!(send(&key, &[("content-type", other)]).await?.status, 422, "{one} {other}");
        }
    }
    Ok(())
}

/// What a string says is no JSON of the body. Taken for some, this is deeper than the stack of a
/// server.
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
    for same in [
        r#"{"sent_at":2,"amount":1.0,"card":{"number":"42","name":"x"}}"#,
        r#"{"amount":1,"card":{"number":"42"}}"#,
    ] {
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
    world
        .pay("abc")
        .header("x-version", "2")
        .body("a first")
        .send()
        .await?
        .assert_problem(422, "mismatch")?;
    world
        .pay("abc")
        .header("x-version", "1")
        .body("b")
        .send()
        .await?
        .assert_problem(422, "mismatch")?;
    Ok(())
}

/// Many readers take an array for a struct, its fields in their order, and a text for a variant.
#[tokio::test]
async fn rule_33_what_is_in_the_place_of_the_selected_fields_counts() -> anyhow::Result<()> {
    let fingerprint = RequestFingerprint::fields(["/amount", "/card/number"]);
    let world = World::with(|layer| layer.with_fingerprint(fingerprint)).await?;
    let cases = [
        ("whole", r#"[100,["42"]]"#, r#"[ 1e2, ["\u0034\u0032"] ]"#, r#"[1,["42"]]"#),
        (
            "inner",
            r#"{"amount":1,"card":["42"]}"#,
            r#"{"card":["42"],"amount":1.0}"#,
            r#"{"amount":1,"card":["43"]}"#,
        ),
        ("word", r#"{"card":"cash"}"#, r#"{"card":"cash","sent_at":1}"#, r#"{"card":"none"}"#),
        ("scalar", "100", "1e2", "1"),
    ];
    for (key, first, again, other) in cases {
        world.pay(key).body(first).send().await?;
        assert!(world.pay(key).body(again).send().await?.is_replayed(), "{again}");
        world.pay(key).body(other).send().await?.assert_problem(422, "mismatch")?;
        assert_eq!(world.effects(key), 1, "{other}");
    }
    Ok(())
}

/// To a patch these remove, replace, empty or keep the same thing.
#[tokio::test]
async fn rule_33_what_ends_the_way_to_the_selected_fields_counts_with_its_place()
-> anyhow::Result<()> {
    let fingerprint = RequestFingerprint::fields(["/address/street", "/address/city"]);
    let world = World::with(|layer| layer.with_fingerprint(fingerprint)).await?;
    let bodies = [
        "{}",
        "null",
        "[]",
        "7",
        r#"{"address":null}"#,
        r#"{"address":{}}"#,
        r#"{"address":[]}"#,
        r#"{"address":7}"#,
        r#"{"address":{"street":null}}"#,
        r#"{"address":{"street":null,"city":null}}"#,
    ];
    for (number, first) in bodies.iter().enumerate() {
        let key = number.to_string();
        world.pay(&key).body(*first).send().await?;
        assert!(world.pay(&key).body(format!(" {first}")).send().await?.is_replayed(), "{first}");
        for other in bodies.iter().filter(|other| *other != first) {
            let answer = world.pay(&key).body(*other).send().await?;
            assert_eq!((answer.status, answer.is_replayed()), (422, false), "{first} and {other}");
        }
        assert_eq!(world.effects(&key), 1);
    }
    Ok(())
}

/// Without the slash a pointer leads nowhere, in whatever body.
#[tokio::test]
async fn rule_33_what_is_no_pointer_excludes_nothing() -> anyhow::Result<()> {
    let world =
        World::with(|layer| layer.with_fingerprint(RequestFingerprint::fields(["amount"]))).await?;
    world.pay("abc").body(r#"{"amount":1}"#).send().await?;
    assert!(world.pay("abc").body(r#"{ "amount": 1 }"#).send().await?.is_replayed());
    world.pay("abc").body(r#"{"amount":2}"#).send().await?.assert_problem(422, "mismatch")?;
    Ok(())
}

#[tokio::test]
async fn rule_34_different_keys_with_the_same_body_both_run() -> anyhow::Result<()> {
    let world = World::new().await?;
    let (one, two) =
        (world.pay("one").body("same").send().await?, world.pay("two").body("same").send().await?);
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
        let old = RequestFingerprint::body();
        let with_history =
            fingerprint.clone().formerly(RequestFingerprint::json().version(9)).formerly(old);
        let client = world.another_server(|layer| layer.with_fingerprint(with_history)).await?;
        let retry =
            client.post("/pay").key("abc").body(r#"{"amount":1,"note":"x"}"#).send().await?;
        assert_eq!((retry.is_replayed(), retry.answer()), (true, first.answer()));
        // Another request is compared in the way of the record, though the new way may take it for
        // the same.
        client
            .post("/pay")
            .key("abc")
            .body(r#"{"amount":1,"note":"y"}"#)
            .send()
            .await?
            .assert_problem(422, "mismatch")?;
        client
            .post("/refund")
            .key("abc")
            .body(r#"{"amount":1,"note":"x"}"#)
            .send()
            .await?
            .assert_problem(422, "mismatch")?;
        // Among themselves the new ones are compared.
        let key = uuid::Uuid::new_v4().to_string();
        client.post("/pay").key(&key).body(r#"{"amount":1}"#).send().await?;
        client
            .post("/pay")
            .key(&key)
            .body(r#"{"amount":2}"#)
            .send()
            .await?
            .assert_problem(422, "mismatch")?;
        // And who names no history has none.
        let client = world.another_server(|layer| layer.with_fingerprint(fingerprint)).await?;
        let retry =
            client.post("/pay").key("abc").body(r#"{"amount":1,"note":"x"}"#).send().await?;
        retry.assert_problem(422, "mismatch")?;
    }
    assert_eq!(world.effects("abc"), 1);
    Ok(())
}

#[tokio::test]
async fn rule_35_a_request_of_an_earlier_release_is_taken_over_by_its_retry_alone()
-> anyhow::Result<()> {
    fn retrying(layer: IdempotencyLayer) -> IdempotencyLayer {
        layer.with_on_crash(OnCrash::Retry).with_on_status(|status, _| match status.as_u16() {
            504 => OnStatus::Hold,
            _ => OnStatus::standard(status),
        })
    }
    let mut world = World::with(retrying).await?;
    let held = world.pay("abc").header("x-status", "504").body(r#"{"amount":1}"#).send().await?;
    assert_eq!(held.status, 504);
    let fingerprint = RequestFingerprint::json().formerly(RequestFingerprint::body());
    let client =
        world.another_server(|layer| retrying(layer).with_fingerprint(fingerprint)).await?;
    for (path, body) in [("/pay", r#"{"amount":2}"#), ("/refund", r#"{"amount":1}"#)] {
        client.post(path).key("abc").body(body).send().await?.assert_problem(422, "mismatch")?;
    }
    assert_eq!(world.effects("abc"), 1);
    let retry = client.post("/pay").key("abc").body(r#"{"amount":1}"#).send().await?;
    assert_eq!((retry.status, retry.is_replayed(), world.effects("abc")), (201, false, 2));
    // Servers of both releases replay it.
    for client in [client, world.client.clone()] {
        let again = client.post("/pay").key("abc").body(r#"{"amount":1}"#).send().await?;
        assert_eq!((again.is_replayed(), again.answer()), (true, retry.answer()));
    }
    Ok(())
}

#[tokio::test]
async fn headers_that_a_service_names_count() -> anyhow::Result<()> {
    let version = HeaderName::from_static("x-version");
    let fingerprint = RequestFingerprint::json().with_headers([version]);
    let world = World::with(|layer| layer.with_fingerprint(fingerprint)).await?;
    world.pay("abc").header("x-version", "1").send().await?;
    assert!(
        world
            .pay("abc")
            .header("x-version", "1")
            .header("x-trace", "2")
            .send()
            .await?
            .is_replayed()
    );
    world.pay("abc").header("x-version", "2").send().await?.assert_problem(422, "mismatch")?;
    world.pay("abc").send().await?.assert_problem(422, "mismatch")?;
    Ok(())
}

/// A new boundary for each try is another body, unless the service reads the parts.
#[tokio::test]
async fn a_multipart_body_with_another_boundary_is_another_request_unless_its_parts_count()
-> anyhow::Result<()> {
    let parts = RequestFingerprint::custom(|request, body| {
        let content_type =
            request.headers.get("content-type").and_then(|value| value.to_str().ok());
        let boundary = content_type
            .and_then(|text| text.split_once("boundary="))
            .map(|(_, boundary)| boundary);
        String::from_utf8_lossy(body).replace(boundary.unwrap_or("none"), "").into_bytes()
    });
    for (fingerprint, is_same) in
        [(RequestFingerprint::body(), false), (RequestFingerprint::json(), false), (parts, true)]
    {
        let world = World::with(|layer| layer.with_fingerprint(fingerprint)).await?;
        let send = |boundary: &str, amount: u32| {
            let part = format!("Content-Disposition: form-data; name=\"amount\"\r\n\r\n{amount}");
            let request = world
                .pay("abc")
                .header("content-type", format!("multipart/form-data; boundary={boundary}"));
            request.body(format!("--{boundary}\r\n{part}\r\n--{boundary}--\r\n")).send()
        };
        send("one", 1).await?;
        assert!(send("one", 1).await?.is_replayed());
        let retry = send("two", 1).await?;
        assert_eq!(
            (retry.status, retry.is_replayed()),
            if is_same { (201, true) } else { (422, false) }
        );
        send("two", 2).await?.assert_problem(422, "mismatch")?;
        assert_eq!(world.effects("abc"), 1);
    }
    Ok(())
}
