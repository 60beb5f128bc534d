//! The client's side: one key for all attempts of a request, and which attempts there are.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::body::Body;
use axum::http::{HeaderValue, Method, Request, Response};
use hyper_util::client::legacy::Error as HyperError;
use idempotency::ErrorKind;
use idempotency::clock::{Clock as _, Randomness};
use idempotency::http::HeaderNames;
use idempotency::http::client::{ClientError, ClientLayer, RequestKey, RequestLabel, Sent};
use idempotency::testing::ManualClock;
use idempotency_test_support::deadline::within;
use tower::limit::ConcurrencyLimitLayer;
use tower::{Layer as _, Service as _, ServiceExt as _, service_fn};
use uuid::Uuid;

use crate::scripted::{
    Drawn, Outcome, Scripted, Step, Strict, answer, answer_with, client, layer, send,
};
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

fn just_before(duration: Duration) -> Duration {
    duration.saturating_sub(MILLISECOND)
}

/// In a task of its own.
fn spawn(
    layer: &ClientLayer,
    service: &Scripted,
) -> tokio::task::JoinHandle<anyhow::Result<Outcome>> {
    tokio::spawn(send(client(layer), service.post("/pay")))
}

fn failure(outcome: Outcome) -> anyhow::Result<ClientError<HyperError>> {
    outcome.err().context("the request has an answer")
}

#[tokio::test]
async fn one_key_is_sent_in_every_attempt_and_another_with_every_request() -> anyhow::Result<()> {
    let clock = ManualClock::new();
    let layer = layer(&clock);
    let mut seen = HashSet::new();
    for _ in 0..3 {
        let service = Scripted::start([Step::Close, answer(503), Step::Close, answer(429)]).await?;
        let answer = send(client(&layer), service.post("/pay")).await??;
        assert_eq!((answer.text(), answer.attempts()), ((201, "answer 5"), Some(5)));
        let received = service.received();
        assert_eq!((received[0].method.as_str(), received[0].path.as_str()), ("POST", "/pay"));
        assert_eq!(received[0].body, "{}");
        assert_eq!(
            received.iter().collect::<HashSet<_>>().len(),
            1,
            "all attempts are one request: {received:?}"
        );
        let key = service.keys().remove(0);
        assert_eq!(answer.sent.as_ref().map(Sent::header), Some(&HeaderValue::from_str(&key)?));
        let uuid = Uuid::parse_str(key.trim_matches('"'))?;
        assert_eq!((uuid.get_version_num(), key.len()), (7, 38), "{key}");
        let (seconds, nanos) = uuid.get_timestamp().context("a time")?.to_unix();
        assert_eq!(seconds * 1_000 + u64::from(nanos / 1_000_000), clock.now().as_millis());
        assert!(seen.insert(key));
    }
    Ok(())
}

#[tokio::test]
async fn keys_of_the_user_are_sent_as_they_are() -> anyhow::Result<()> {
    let service = Scripted::start([answer(503), answer(201), answer(503), answer(201)]).await?;
    let layer = layer(&ManualClock::new());
    let mut request = service.request(Method::PUT, "/pay");
    request.headers_mut().insert("idempotency-key", HeaderValue::from_static("in-the-header"));
    request.extensions_mut().insert(RequestKey::new("not this one")?);
    send(client(&layer), request).await??;
    let mut request = service.post("/pay");
    request.extensions_mut().insert(RequestKey::new(r#"a "b" \c"#)?);
    request.extensions_mut().insert(RequestLabel::new("of no meaning here"));
    send(client(&layer), request.clone()).await??;
    send(client(&layer.clone().with_bare_keys()), request).await??;
    // Without quotes these would arrive as another key, the one of another request perhaps.
    for key in [" c", "c ", "\"c\""] {
        let mut request = service.post("/pay");
        request.extensions_mut().insert(RequestKey::new(key)?);
        let error = failure(send(client(&layer.clone().with_bare_keys()), request).await?)?;
        assert!(matches!(error, ClientError::NotSent(_)), "{key:?}: {error}");
    }
    let quoted = r#""a \"b\" \\c""#;
    assert_eq!(service.keys(), ["in-the-header", "in-the-header", quoted, quoted, r#"a "b" \c"#]);
    Ok(())
}

#[tokio::test]
async fn requests_of_other_methods_are_passed_on_untouched() -> anyhow::Result<()> {
    let service =
        Scripted::start([answer(503), Step::Close, answer(503), answer(201), answer(503)]).await?;
    let layer = layer(&ManualClock::new());
    let answer = send(client(&layer), service.request(Method::GET, "/pay")).await??;
    assert_eq!((answer.text(), answer.attempts()), ((503, "answer 1"), None));
    let error = failure(send(client(&layer), service.request(Method::DELETE, "/pay")).await?)?;
    assert!(matches!(error, ClientError::Failed { .. }) && error.sent().is_none(), "{error}");
    assert_eq!(service.keys(), ["none", "none"]);

    let layer = layer.with_methods([Method::DELETE]);
    send(client(&layer), service.request(Method::DELETE, "/pay")).await??;
    send(client(&layer), service.post("/pay")).await??;
    let keys = service.keys();
    assert_eq!((keys.len(), keys[2] == keys[3], keys[4].as_str()), (5, true, "none"), "{keys:?}");
    Ok(())
}

#[tokio::test]
async fn only_answers_that_can_change_are_asked_for_again() -> anyhow::Result<()> {
    let problem = ("content-type", "application/problem+json");
    let later = ("retry-after", "0");
    let again = [408, 409, 425, 429, 502, 503, 504].map(answer);
    for step in again.into_iter().chain([answer_with(409, &[problem, later])]) {
        let service = Scripted::start([step.clone()]).await?;
        let answer = send(client(&layer(&ManualClock::new())), service.post("/pay")).await??;
        assert_eq!((answer.text(), service.keys().len()), ((201, "answer 2"), 2), "{step:?}");
    }
    let final_ones = [200, 302, 400, 401, 403, 404, 410, 413, 422, 500, 501].map(answer);
    let replayed = answer_with(503, &[("idempotency-replayed", "true")]);
    // The service ran without its store, and would run again.
    let bypassed = answer_with(503, &[("idempotency-bypassed", "true")]);
    let uncertain = answer_with(409, &[problem, ("idempotency-problem", "uncertain")]);
    let others = [uncertain, answer_with(422, &[problem, later]), replayed, bypassed];
    for step in final_ones.into_iter().chain(others) {
        let service = Scripted::start([step.clone()]).await?;
        let answer = send(client(&layer(&ManualClock::new())), service.post("/pay")).await??;
        assert_eq!((answer.body.as_str(), service.keys().len()), ("answer 1", 1), "{step:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_key_in_the_usual_header_is_not_replaced_by_one_in_another() -> anyhow::Result<()> {
    let service = Scripted::start([]).await?;
    let names = HeaderNames::new().with_key("x-request-key")?;
    let layer = layer(&ManualClock::new()).with_header_names(names);
    let with = |name: &'static str| {
        let mut request = service.post("/pay");
        request.headers_mut().insert(name, HeaderValue::from_static("order-7"));
        request
    };
    let error = failure(send(client(&layer), with("idempotency-key")).await?)?;
    assert!(
        matches!(&error, ClientError::NotSent(error) if error.kind() == ErrorKind::InvalidKey),
        "{error}"
    );
    assert!(service.received().is_empty());
    assert!(send(client(&layer), with("x-request-key")).await?.is_ok());
    assert_eq!(service.received().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_problem_counts_under_its_usual_name_too() -> anyhow::Result<()> {
    for name in ["idempotency-problem", "x-why"] {
        let names = HeaderNames::new().with_problem("x-why")?;
        for kind in ["uncertain", "not-kept", "expired", "mismatch"] {
            let service = Scripted::start([answer_with(409, &[(name, kind)])]).await?;
            let layer = layer(&ManualClock::new()).with_header_names(names.clone());
            let answer = send(client(&layer), service.post("/pay")).await??;
            assert_eq!(
                (answer.text(), service.keys().len()),
                ((409, "answer 1"), 1),
                "{name}: {kind}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn services_and_clients_of_other_habits_are_described() -> anyhow::Result<()> {
    let again = answer_with(500, &[("x-should-retry", "true")]);
    let service = Scripted::start([again, answer(500), Step::Close]).await?;
    let layer = layer(&ManualClock::new())
        .with_retried_answers(|answer| answer.headers.contains_key("x-should-retry"));
    assert_eq!(send(client(&layer), service.post("/pay")).await??.text(), (500, "answer 2"));

    let connected = layer.with_errors(HyperError::is_connect).layer(Strict::new());
    let error = failure(send(connected, service.post("/pay")).await?)?;
    assert!(matches!(error, ClientError::Failed { .. }), "{error}");
    assert_eq!((error.sent().map(Sent::attempts), service.keys().len()), (Some(1), 3));
    Ok(())
}

#[tokio::test]
async fn a_body_that_cannot_be_copied_is_sent_once() -> anyhow::Result<()> {
    let service = Scripted::start([answer(503), Step::Close]).await?;
    let once = layer(&ManualClock::new()).with_body_copy(|_: &Body| None).layer(Strict::new());
    let request = || service.post("/pay").map(Body::from);
    assert_eq!(send(once.clone(), request()).await??.text(), (503, "answer 1"));
    let error = failure(send(once, request()).await?)?;
    assert!(matches!(error, ClientError::Failed { .. }), "{error}");
    let keys = service.keys();
    assert_eq!(
        keys.iter().collect::<HashSet<_>>().len(),
        2,
        "each of the two has a key of its own: {keys:?}"
    );
    Ok(())
}

#[tokio::test]
async fn the_seconds_of_retry_after_are_waited_for() -> anyhow::Result<()> {
    let service = Scripted::start([answer_with(503, &[("retry-after", "5")])]).await?;
    let clock = ManualClock::new();
    let request = spawn(&layer(&clock), &service);
    // The deadline is one sleeper, the pause the other.
    within("the pause", clock.wait_for_sleepers(2)).await?;
    clock.advance(just_before(5 * SECOND));
    assert_eq!((clock.sleepers(), service.keys().len()), (2, 1));
    clock.advance(MILLISECOND);
    assert_eq!(request.await???.text(), (201, "answer 2"));
    Ok(())
}

#[tokio::test]
async fn the_date_of_retry_after_is_waited_for() -> anyhow::Result<()> {
    // The clock stands at the beginning of 2026; the second service's clock is three hours ahead.
    let by_our_clock = answer_with(429, &[("retry-after", "Thu, 01 Jan 2026 00:01:00 GMT")]);
    let later = ("retry-after", "Thu, 01 Jan 2026 03:01:00 GMT");
    let by_its_clock = answer_with(429, &[("date", "Thu, 01 Jan 2026 03:00:00 GMT"), later]);
    for step in [by_our_clock, by_its_clock] {
        let service = Scripted::start([step.clone()]).await?;
        let clock = ManualClock::new();
        let request = spawn(&layer(&clock).with_deadline(61 * SECOND), &service);
        within("the pause", clock.wait_for_sleepers(2)).await?;
        clock.advance(just_before(60 * SECOND));
        assert_eq!((clock.sleepers(), service.keys().len()), (2, 1), "{step:?}");
        clock.advance(MILLISECOND);
        assert_eq!(request.await???.text(), (201, "answer 2"), "{step:?}");
    }
    Ok(())
}

#[tokio::test]
async fn pauses_grow_and_are_random_up_to_their_bound() -> anyhow::Result<()> {
    let service = Scripted::start([answer(503), Step::Close, answer(503), answer(503)]).await?;
    let clock = ManualClock::new();
    let layer = ClientLayer::new().with_clock(clock.clone()).with_backoff(SECOND, 4 * SECOND);
    let longest = spawn(&layer.clone().with_randomness(Drawn(0xff)), &service);
    for (sent, seconds) in [(1, 1), (2, 2), (3, 4), (4, 4)] {
        within("the pause", clock.wait_for_sleepers(2)).await?;
        service.has_received(sent).await?;
        clock.advance(just_before(seconds * SECOND));
        assert_eq!((clock.sleepers(), service.keys().len()), (2, sent));
        clock.advance(MILLISECOND);
        service.has_received(sent + 1).await?;
    }
    assert_eq!(longest.await???.text(), (201, "answer 5"));

    let service = Scripted::start([answer(503), answer(503)]).await?;
    let shortest = send(client(&layer.with_randomness(Drawn(0))), service.post("/pay")).await??;
    assert_eq!(shortest.text(), (201, "answer 3"), "no time has passed");
    Ok(())
}

#[tokio::test]
async fn a_pause_that_would_pass_the_deadline_is_not_made() -> anyhow::Result<()> {
    let clock = ManualClock::new();
    for seconds in ["30", "31", "99999999999999999999"] {
        let service = Scripted::start([answer_with(503, &[("retry-after", seconds)])]).await?;
        let answer = send(client(&layer(&clock)), service.post("/pay")).await??;
        assert_eq!((answer.text(), answer.attempts()), ((503, "answer 1"), Some(1)), "{seconds}");
    }
    let service = Scripted::start([Step::Close]).await?;
    let patient = layer(&clock).with_backoff(60 * SECOND, 60 * SECOND).with_randomness(Drawn(0x80));
    let error = failure(send(client(&patient), service.post("/pay")).await?)?;
    assert!(matches!(error, ClientError::Failed { .. }), "{error}");
    assert_eq!(
        (error.sent().map(Sent::attempts), service.keys().len(), clock.sleepers()),
        (Some(1), 1, 0)
    );
    Ok(())
}

#[tokio::test]
async fn the_deadline_is_over_all_attempts() -> anyhow::Result<()> {
    let later = answer_with(503, &[("retry-after", "20")]);
    let service = Scripted::start([later, Step::Hang]).await?;
    let clock = ManualClock::new();
    let request = spawn(&layer(&clock), &service);
    within("the pause", clock.wait_for_sleepers(2)).await?;
    clock.advance(20 * SECOND);
    service.has_received(2).await?;
    clock.advance(just_before(10 * SECOND));
    assert_eq!(clock.sleepers(), 1, "the attempt has what is left");
    clock.advance(MILLISECOND);
    let error = failure(request.await??)?;
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    let sent = error.sent().context("it was sent")?;
    assert_eq!(sent.attempts(), 2);
    assert_eq!(service.keys(), [sent.header().to_str()?; 2], "the error names the key");
    assert!(
        !format!("{error:?} {error}").contains(sent.header().to_str()?.trim_matches('"')),
        "nobody else does"
    );
    Ok(())
}

#[tokio::test]
async fn a_pause_that_ends_late_is_followed_by_nothing() -> anyhow::Result<()> {
    let service = Scripted::start([answer_with(503, &[("retry-after", "20")])]).await?;
    let clock = ManualClock::new();
    let request = spawn(&layer(&clock), &service);
    within("the pause", clock.wait_for_sleepers(2)).await?;
    // The machine stood still.
    clock.advance(31 * SECOND);
    let error = failure(request.await??)?;
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    assert_eq!((error.sent().map(Sent::attempts), service.keys().len()), (Some(1), 1));
    Ok(())
}

/// What is held of it keeps its connection from others.
#[tokio::test]
async fn nothing_of_an_answer_is_held_during_the_pause_after_it() -> anyhow::Result<()> {
    let (answers, answered) = std::sync::mpsc::channel();
    let service = service_fn(move |_: Request<String>| {
        let body = Arc::new(());
        let _ = answers.send(Arc::downgrade(&body));
        let response = Response::builder().status(503).header("retry-after", "5").body(body);
        async move { response }
    });
    let clock = ManualClock::new();
    let mut client = layer(&clock).with_max_attempts(2).layer(service);
    let request = Request::post("http://shop/pay").body(String::new())?;
    let request = tokio::spawn(async move { client.ready().await?.call(request).await });
    within("the pause", clock.wait_for_sleepers(2)).await?;
    assert_eq!(answered.recv()?.strong_count(), 0);
    clock.advance(5 * SECOND);
    let last = within("the last answer", request).await???;
    assert_eq!((last.status().as_u16(), answered.recv()?.strong_count()), (503, 1));
    Ok(())
}

#[tokio::test]
async fn without_a_key_nothing_is_sent() -> anyhow::Result<()> {
    #[derive(Debug)]
    struct Nothing;

    impl Randomness for Nothing {
        fn fill(&self, _: &mut [u8]) -> std::io::Result<()> {
            Err(std::io::ErrorKind::Other.into())
        }
    }

    let service = Scripted::start([]).await?;
    let layer = layer(&ManualClock::new()).with_randomness(Nothing);
    let error = failure(send(client(&layer), service.post("/pay")).await?)?;
    assert!(
        matches!(&error, ClientError::NotSent(error) if error.kind() == ErrorKind::Config),
        "{error}"
    );
    assert!(error.sent().is_none() && service.keys().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_request_with_two_keys_is_not_sent() -> anyhow::Result<()> {
    let service = Scripted::start([]).await?;
    let mut request = service.post("/pay");
    for key in ["one", "other"] {
        request.headers_mut().append("idempotency-key", key.parse()?);
    }
    let error = failure(send(client(&layer(&ManualClock::new())), request).await?)?;
    assert!(
        matches!(&error, ClientError::NotSent(error) if error.kind() == ErrorKind::InvalidKey),
        "{error}"
    );
    assert!(error.sent().is_none() && service.keys().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_request_that_is_not_sent_keeps_no_place_of_the_service() -> anyhow::Result<()> {
    let service = Scripted::start([]).await?;
    let limited = ConcurrencyLimitLayer::new(1).layer(Strict::new());
    let mut client = layer(&ManualClock::new()).layer(limited);
    let mut blank = service.post("/pay");
    blank.headers_mut().insert("idempotency-key", "".parse()?);
    let refused = client.ready().await?.call(blank).await;
    assert!(matches!(refused, Err(ClientError::NotSent(_))));
    assert!(send(client.clone(), service.post("/pay")).await?.is_ok());
    Ok(())
}

/// To the service it is none, and a retry would be a second request.
#[tokio::test]
async fn a_request_with_a_blank_key_is_not_sent() -> anyhow::Result<()> {
    let service = Scripted::start([Step::Close]).await?;
    for blank in ["", "  ", "\"\"", "\" \"", " \"\" ", "\"\";a=1", "\"  \" ; b"] {
        let mut request = service.post("/pay");
        request.headers_mut().insert("idempotency-key", blank.parse()?);
        let error = failure(send(client(&layer(&ManualClock::new())), request).await?)?;
        assert!(
            matches!(&error, ClientError::NotSent(error) if error.kind() == ErrorKind::InvalidKey),
            "{blank:?}: {error}"
        );
    }
    assert!(service.keys().is_empty());
    // Whatever else it is, it is for the service to judge.
    for key in ["abc", "\"a b\"", "\"\\\"\"", "\"", "?1", ";\"\""] {
        let mut request = service.post("/pay");
        request.headers_mut().insert("idempotency-key", key.parse()?);
        let sent = send(client(&layer(&ManualClock::new())), request).await?;
        assert!(sent.is_ok(), "{key:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_followed_by_another() -> anyhow::Result<()> {
    let service = Scripted::start([Step::Hang, Step::Hang]).await?;
    let clock = ManualClock::new();
    let layer = layer(&clock).with_attempt_timeout(10 * SECOND);
    let request = spawn(&layer, &service);
    service.has_received(1).await?;
    clock.advance(just_before(10 * SECOND));
    assert_eq!((clock.sleepers(), service.keys().len()), (2, 1));
    clock.advance(MILLISECOND);
    service.has_received(2).await?;
    clock.advance(10 * SECOND);
    assert_eq!(request.await???.text(), (201, "answer 3"));
    let keys = service.keys();
    assert_eq!(keys.iter().collect::<HashSet<_>>().len(), 1, "{keys:?}");

    let service = Scripted::start([Step::Hang]).await?;
    let request = spawn(&layer.with_max_attempts(1), &service);
    service.has_received(1).await?;
    clock.advance(10 * SECOND);
    let error = failure(request.await??)?;
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    Ok(())
}

#[tokio::test]
async fn attempts_can_be_counted_out() -> anyhow::Result<()> {
    let service = Scripted::start([answer(503), answer(502), Step::Close]).await?;
    let layer = layer(&ManualClock::new());
    let answer = send(client(&layer.clone().with_max_attempts(2)), service.post("/pay")).await??;
    assert_eq!((answer.text(), answer.attempts()), ((502, "answer 2"), Some(2)));
    let error = failure(send(client(&layer.with_max_attempts(0)), service.post("/pay")).await?)?;
    assert_eq!((error.sent().map(Sent::attempts), service.keys().len()), (Some(1), 3));
    Ok(())
}

#[tokio::test]
async fn a_future_that_is_dropped_sends_nothing_more() -> anyhow::Result<()> {
    let service = Scripted::start([answer_with(503, &[("retry-after", "5")])]).await?;
    let clock = ManualClock::new();
    let request = spawn(&layer(&clock), &service);
    within("the pause", clock.wait_for_sleepers(2)).await?;
    request.abort();
    assert!(request.await.is_err_and(|error| error.is_cancelled()));
    assert_eq!((clock.sleepers(), service.keys().len()), (0, 1));
    Ok(())
}

#[tokio::test]
async fn the_answer_of_the_first_request_is_waited_for() -> anyhow::Result<()> {
    let world = World::new().await?;
    let first = world.pay("abc").header("x-wait", "yes").spawn();
    world.entered("abc").await?;

    let clock = ManualClock::new();
    let mut request =
        Request::post(format!("http://{}/pay", world.client.address())).body("{}".to_owned())?;
    request.extensions_mut().insert(RequestKey::new("abc")?);
    let second = tokio::spawn(send(client(&layer(&clock)), request));
    within("the pause", clock.wait_for_sleepers(2)).await?;
    world.shop.gate.open();
    let first = first.reply().await?;
    clock.advance(SECOND);
    let second = second.await???;
    assert_eq!((second.status, second.body.as_bytes()), (first.status, &first.body[..]));
    assert!(second.headers.contains_key("idempotency-replayed"));
    assert_eq!((second.attempts(), world.effects("abc")), (Some(2), 1));
    Ok(())
}
