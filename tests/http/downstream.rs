//! The client's side inside of a guarded call: keys that are the same in every attempt of the body.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::bail;
use axum::http::Method;
use idempotency::http::client::{ClientError, ClientService, RequestKey, RequestLabel};
use idempotency::step::StepRetry;
use idempotency::store::MemoryStore;
use idempotency::testing::ManualClock;
use idempotency::{
    Call, Context, Error, ErrorKind, Idempotency, InCurrentCall as _, OnCrash, Verdict,
};
use tokio::sync::Notify;

use crate::scripted::{Outcome, Scripted, Step, Strict, answer, client, layer, send};
use crate::world::{DAY, PATIENCE};

/// What a body has of the world. Its client sends each request once.
struct Caller {
    engine: Idempotency,
    client: ClientService<Strict<String>>,
    service: Scripted,
}

impl Caller {
    async fn new(script: impl IntoIterator<Item = Step>) -> anyhow::Result<Self> {
        let engine = Idempotency::builder(MemoryStore::new()).claim_timeout(PATIENCE).build()?;
        let client = client(&layer(&ManualClock::new()).with_max_attempts(1));
        Ok(Self { engine, client, service: Scripted::start(script).await? })
    }

    fn order(&self, number: u32) -> Call {
        self.engine.call("orders.pay", number).ttl(DAY)
    }

    async fn send_as(&self, path: &str, label: &RequestLabel) -> anyhow::Result<Outcome> {
        let mut request = self.service.post(path);
        request.extensions_mut().insert(label.clone());
        send(self.client.clone(), request).await
    }

    async fn send(&self, path: &str, label: Option<&str>) -> anyhow::Result<Outcome> {
        let mut request = self.service.post(path);
        if let Some(label) = label {
            request.extensions_mut().insert(RequestLabel::new(label));
        }
        send(self.client.clone(), request).await
    }
}

fn quoted(key: &str) -> String {
    format!("\"{key}\"")
}

/// The error of a request that was refused before it was sent.
fn refusal(outcome: Outcome) -> Option<Error> {
    match outcome {
        Err(ClientError::NotSent(error)) => Some(error),
        _ => None,
    }
}

#[tokio::test]
async fn keys_are_the_same_in_every_attempt_and_others_in_every_call() -> anyhow::Result<()> {
    let caller = Caller::new([]).await?;
    let attempt = async |order, fails: bool| {
        let body = || async {
            caller.send("/charge", Some("charge")).await??;
            caller.send("/charge", Some("tip")).await??;
            caller.send("/mail", None).await??;
            if fails {
                bail!("the body gives up");
            }
            Ok(Context::current().derive_key("charge"))
        };
        caller.order(order).run(body).await
    };
    assert!(attempt(1, true).await.is_err());
    let derived = attempt(1, false).await?;
    attempt(2, false).await?;
    let keys = caller.service.keys();
    assert_eq!(keys[..3], keys[3..6], "a later attempt repeats the keys");
    assert_eq!(keys[0], quoted(&derived), "a label is the purpose of a derived key");
    assert_eq!(
        keys.iter().collect::<HashSet<_>>().len(),
        6,
        "three requests in each of two calls: {keys:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_key_of_the_user_goes_before_a_derived_one() -> anyhow::Result<()> {
    let caller = Caller::new([]).await?;
    let body = || async {
        let mut request = caller.service.post("/charge");
        request.extensions_mut().insert(RequestKey::new("mine")?);
        request.extensions_mut().insert(RequestLabel::new("charge"));
        send(caller.client.clone(), request.clone()).await??;
        send(caller.client.clone(), request).await??;
        anyhow::Ok(())
    };
    caller.order(1).run(body).await?;
    assert_eq!(caller.service.keys(), [quoted("mine"), quoted("mine")]);
    Ok(())
}

#[tokio::test]
async fn a_second_request_to_one_address_needs_a_label() -> anyhow::Result<()> {
    let caller = Caller::new([]).await?;
    let body = || async {
        caller.send("/charge", None).await??;
        let refused = refusal(caller.send("/charge", None).await?);
        caller.send("/charge/another", None).await??;
        caller.send("/charge", Some("second")).await??;
        caller.send("/charge", Some("second")).await??;
        let refused = refused.map(|error| (error.kind() == ErrorKind::Config, error.to_string()));
        anyhow::Ok(refused)
    };
    let (is_config, text) = caller.order(1).run(body).await?.unwrap_or_default();
    assert!(
        is_config && text.contains("orders.pay") && text.ends_with("give each a `RequestLabel`"),
        "{text}"
    );
    let paths: Vec<_> =
        caller.service.received().into_iter().map(|received| received.path).collect();
    assert_eq!(
        paths,
        ["/charge", "/charge/another", "/charge", "/charge"],
        "what was refused was not sent"
    );
    let keys = caller.service.keys();
    assert_eq!(
        (keys.iter().collect::<HashSet<_>>().len(), &keys[2]),
        (3, &keys[3]),
        "one label is one request"
    );
    Ok(())
}

/// A query that is signed or has a time is another one in the next attempt, whose key would then be
/// one too.
#[tokio::test]
async fn a_request_with_a_query_needs_a_label() -> anyhow::Result<()> {
    let caller = Caller::new([]).await?;
    let attempt = async |time: &str, label: Option<&'static str>| {
        let path = format!("/charge?timestamp={time}");
        let body = || async {
            let refused = match caller.send(&path, label).await? {
                Ok(_) => None,
                outcome => refusal(outcome),
            };
            if let Some(error) = refused {
                let text = error.to_string();
                assert!(
                    error.kind() == ErrorKind::Config
                        && text.contains("orders.pay")
                        && text.ends_with("give it a `RequestLabel`"),
                    "{text}"
                );
            }
            // A request without a key is none of this.
            let lookup = caller.service.request(Method::GET, &path);
            send(caller.client.clone(), lookup).await??;
            Err::<(), _>(anyhow::anyhow!("the body gives up"))
        };
        let error = caller.order(1).run(body).await.unwrap_err();
        assert_eq!(error.to_string(), "the body gives up");
        anyhow::Ok(())
    };
    for time in ["1", "2"] {
        attempt(time, None).await?;
    }
    let charges = || {
        let received = caller.service.received();
        received.into_iter().filter_map(|received| received.key).collect::<Vec<_>>()
    };
    assert!(charges().is_empty(), "it would be another charge in each attempt: {:?}", charges());
    assert_eq!(caller.service.received().len(), 2, "both lookups were sent");
    for time in ["3", "4"] {
        attempt(time, Some("charge")).await?;
    }
    let charges = charges();
    assert_eq!((charges.len(), &charges[0]), (2, &charges[1]));
    // Outside of a call there is nothing to repeat.
    assert!(caller.send("/charge?timestamp=5", None).await?.is_ok());
    Ok(())
}

#[tokio::test]
async fn what_was_not_answered_is_sent_again_with_its_key() -> anyhow::Result<()> {
    let caller = Caller::new([Step::Close, answer(503), Step::Hang, answer(402)]).await?;
    let body = || async {
        assert!(caller.send("/charge", None).await?.is_err());
        assert_eq!(caller.send("/charge", None).await??.status, 503);
        // Nobody waits for the answer to the third.
        let mut client = caller.client.clone();
        std::future::poll_fn(|task| tower::Service::poll_ready(&mut client, task)).await?;
        let hanging =
            tokio::spawn(tower::Service::call(&mut client, caller.service.post("/charge")));
        caller.service.has_received(3).await?;
        assert!(
            refusal(caller.send("/charge", None).await?).is_some(),
            "the other one is still on its way"
        );
        hanging.abort();
        assert!(hanging.await.is_err_and(|error| error.is_cancelled()));
        assert_eq!(caller.send("/charge", None).await??.status, 402);
        assert!(refusal(caller.send("/charge", None).await?).is_some());
        anyhow::Ok(())
    };
    caller.order(1).run(body).await?;
    let keys = caller.service.keys();
    assert_eq!((keys.len(), keys.iter().collect::<HashSet<_>>().len()), (4, 1), "{keys:?}");
    Ok(())
}

#[tokio::test]
async fn each_step_has_keys_of_its_own() -> anyhow::Result<()> {
    let caller = Caller::new([]).await?;
    let body = || async {
        let context = Context::current();
        let charge = || async { anyhow::Ok(caller.send("/charge", None).await??.status) };
        context.step("first", charge).await?;
        context.step("second", charge).await?;
        charge().await?;
        anyhow::Ok(())
    };
    caller.order(1).on_crash(OnCrash::Resume).run(body).await?;
    let keys = caller.service.keys();
    assert_eq!(keys.iter().collect::<HashSet<_>>().len(), 3, "{keys:?}");
    Ok(())
}

/// As a new attempt of the body does.
#[tokio::test]
async fn a_new_try_of_a_step_sends_its_request_again_with_its_key() -> anyhow::Result<()> {
    let caller = Caller::new([answer(500), answer(500)]).await?;
    let body = || async {
        let charge = || async {
            let status = caller.send("/charge", None).await??.status;
            let refused = refusal(caller.send("/charge", None).await?);
            assert!(refused.is_some(), "in one try a second request is another one");
            if status == 500 {
                bail!("the service failed");
            }
            Ok(status)
        };
        let retry = StepRetry::tries(3).first_pause(Duration::from_millis(1));
        assert_eq!(Context::current().step("charge", charge).retry(retry).await?, 201);
        // Outside of the step it is another one.
        caller.send("/charge", None).await??;
        assert!(refusal(caller.send("/charge", None).await?).is_some());
        anyhow::Ok(())
    };
    caller.order(1).on_crash(OnCrash::Resume).run(body).await?;
    let keys = caller.service.keys();
    assert_eq!((keys.len(), &keys[0], &keys[0]), (4, &keys[1], &keys[2]), "{keys:?}");
    assert_ne!(keys[0], keys[3]);
    Ok(())
}

/// Its request may still be on its way when the next try sends it again, and its end frees nothing.
#[tokio::test]
async fn a_task_of_an_earlier_try_does_not_free_the_place_of_a_later_one() -> anyhow::Result<()> {
    let caller = Arc::new(Caller::new([Step::Hang, answer(201)]).await?);
    let body = || async {
        let tries = AtomicU32::new(0);
        let earlier = Mutex::new(None);
        let charge = || async {
            if tries.fetch_add(1, Ordering::SeqCst) == 0 {
                let hanging = caller.clone();
                let task = async move { hanging.send("/charge", None).await.is_ok() };
                *earlier.lock().unwrap() = Some(tokio::spawn(task.in_current_call()));
                caller.service.has_received(1).await?;
                bail!("the step gives up");
            }
            let status = caller.send("/charge", None).await??.status;
            let task = earlier.lock().unwrap().take();
            let task = task.expect("the first try has left it");
            task.abort();
            assert!(task.await.is_err());
            assert!(refusal(caller.send("/charge", None).await?).is_some());
            Ok(status)
        };
        let retry = StepRetry::tries(2).first_pause(Duration::from_millis(1));
        anyhow::Ok(Context::current().step("charge", charge).retry(retry).await?)
    };
    assert_eq!(caller.order(1).on_crash(OnCrash::Resume).run(body).await?, 201);
    let keys = caller.service.keys();
    assert_eq!((keys.len(), &keys[0]), (2, &keys[1]));
    Ok(())
}

#[tokio::test]
async fn tasks_of_a_body_take_its_call_along() -> anyhow::Result<()> {
    let caller = Caller::new([]).await?;
    let body = || async {
        let mut request = caller.service.post("/charge");
        request.extensions_mut().insert(RequestLabel::new("charge"));
        let carried = send(caller.client.clone(), request.clone()).in_current_call();
        tokio::spawn(carried).await???;
        tokio::spawn(send(caller.client.clone(), request)).await???;
        anyhow::Ok(Context::current().derive_key("charge"))
    };
    let derived = caller.order(1).run(body).await?;
    let keys = caller.service.keys();
    assert_eq!(
        (keys[0] == quoted(&derived), keys[1] == quoted(&derived)),
        (true, false),
        "{keys:?}"
    );
    Ok(())
}

/// Where lookups are sent with POST, the service would answer each from the record of the one
/// before.
#[tokio::test]
async fn a_question_says_what_its_requests_repeat() -> anyhow::Result<()> {
    let caller = Caller::new([]).await?;
    let order = || caller.order(1).settle(Duration::from_millis(1));
    let charge = || async {
        caller.send("/charge", Some("charge")).await??;
        caller.send("/ledger", None).await??;
        std::future::pending::<()>().await;
        anyhow::Ok(0)
    };
    let unasked = async |_: Context| anyhow::Ok(Verdict::Unknown);
    {
        let attempt = order().on_crash_verify(unasked).run(charge);
        tokio::pin!(attempt);
        tokio::select! {
            _ = &mut attempt => bail!("the body waits for ever"),
            received = caller.service.has_received(2) => received?,
        }
        // Both are answered.
        assert!(tokio::time::timeout(Duration::from_millis(200), attempt).await.is_err());
    }
    let question = |_: Context| async {
        let refused = refusal(caller.send("/search", None).await?)
            .map(|error| (error.kind(), error.to_string()));
        let (kind, text) = refused.unwrap_or((ErrorKind::InvalidKey, String::new()));
        assert!(
            kind == ErrorKind::Config
                && text.contains("RequestKey")
                && text.contains("RequestLabel"),
            "{text}"
        );
        assert!(refusal(caller.send("/ledger", None).await?).is_some());
        caller.send("/charge", Some("charge")).await??;
        let mut search = caller.service.post("/search");
        search.extensions_mut().insert(RequestKey::new("of this question")?);
        send(caller.client.clone(), search).await??;
        anyhow::Ok(Verdict::NotExecuted)
    };
    // What the body sends afterwards has its keys as ever.
    let body = || async {
        caller.send("/ledger", None).await??;
        anyhow::Ok(1)
    };
    assert_eq!(order().on_crash_verify(question).run(body).await?, 1);
    let received = caller.service.received();
    let paths: Vec<_> = received.iter().map(|received| received.path.as_str()).collect();
    assert_eq!(paths, ["/charge", "/ledger", "/charge", "/search", "/ledger"]);
    let keys = caller.service.keys();
    assert_eq!(
        (&keys[0], &keys[1], keys[3].as_str()),
        (&keys[2], &keys[4], "\"of this question\"")
    );
    Ok(())
}

/// Breaks an attempt off after its request was answered, and lets the next call ask. Returns the
/// result of that call: its question sends the request with the label `asks`.
async fn asked_about_a_step(
    caller: &Caller,
    sends: &RequestLabel,
    asks: &RequestLabel,
) -> anyhow::Result<u32> {
    let order = || caller.order(1).settle(Duration::from_millis(1));
    let answered = Notify::new();
    let body = || async {
        let charge = || async { anyhow::Ok(caller.send_as("/charge", sends).await??.status) };
        Context::current().step_at("charge", 7, charge).await?;
        answered.notify_one();
        std::future::pending().await
    };
    {
        let unasked = async |_: Context| anyhow::Ok(Verdict::Unknown);
        tokio::select! {
            ended = order().on_crash_verify(unasked).run(body) => return ended,
            () = answered.notified() => {}
        }
    }
    let question = |_: Context| async {
        let status = caller.send_as("/charge", asks).await??.status;
        Ok(Verdict::Completed(u32::from(status)))
    };
    order().on_crash_verify(question).run(async || bail!("it was charged")).await
}

/// The service charges once for each key.
#[tokio::test]
async fn a_question_names_the_step_of_the_request_that_it_repeats() -> anyhow::Result<()> {
    let caller = Caller::new([]).await?;
    let charge = RequestLabel::new("charge").of_step_at("charge", 7);
    assert_eq!(asked_about_a_step(&caller, &charge, &charge).await?, 201);
    let keys = caller.service.keys();
    assert_eq!((keys.len(), &keys[0]), (2, &keys[1]), "the question repeats the request");
    // It is the key that the step itself derives.
    let derived = caller
        .order(2)
        .on_crash(OnCrash::Resume)
        .run(|| async {
            let context = Context::current();
            let charge = || async {
                let named = RequestLabel::new("charge").of_step("charge");
                caller.send_as("/charge", &named).await??;
                caller.send_as("/charge", &RequestLabel::new("charge")).await??;
                anyhow::Ok(Context::current().derive_key("charge"))
            };
            let derived = context.step("charge", charge).await?;
            anyhow::Ok((derived, context.derive_key_in_step("charge", 0, "charge")))
        })
        .await?;
    let keys = caller.service.keys();
    assert_eq!(derived.0, derived.1);
    assert_eq!(keys[2..], [quoted(&derived.0), quoted(&derived.0)]);
    Ok(())
}

/// Its key is the one of the step, and a question with the same label would send another one.
#[tokio::test]
async fn a_label_in_a_step_of_a_call_that_may_ask_names_the_step() -> anyhow::Result<()> {
    let caller = Caller::new([]).await?;
    let plain = RequestLabel::new("charge");
    let outcome = asked_about_a_step(&caller, &plain, &plain).await;
    let charges: HashSet<_> = caller.service.keys().into_iter().collect();
    assert_eq!(charges.len(), 0, "the service charges once for each key: {outcome:?}");
    let error = outcome.expect_err("the body was refused");
    let refused = Error::find(&*error).expect("the request was refused");
    let text = refused.to_string();
    assert!(refused.kind() == ErrorKind::Config && text.contains("of_step"), "{text}");
    Ok(())
}

/// Each of the others would send the request of the first, and record its answer as its own.
#[tokio::test]
async fn a_label_names_no_other_step_than_the_one_that_sends_it() -> anyhow::Result<()> {
    let caller = Caller::new([]).await?;
    let label = RequestLabel::new("charge").of_step("charge");
    let body = || async {
        let context = Context::current();
        for index in 0..2 {
            let charge = || async { anyhow::Ok(caller.send_as("/charge", &label).await??.status) };
            context.step_at("charge", index, charge).await?;
        }
        anyhow::Ok(0)
    };
    let error = caller.order(1).on_crash(OnCrash::Resume).run(body).await.unwrap_err();
    let refused = Error::find(&*error).expect("the request was refused");
    let text = refused.to_string();
    assert!(refused.kind() == ErrorKind::Config && text.contains("of_step_at"), "{text}");
    assert_eq!(caller.service.keys().len(), 1);
    Ok(())
}
