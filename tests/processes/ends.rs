//! Bodies that end without a result while their process lives: dropped, panicked, shut down. Nobody
//! waits for a lease.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use futures::future::try_join_all;
use idempotency::ErrorKind;
use idempotency::record::State;
use idempotency_test_support::deadline::{eventually_async, within};
use tokio::sync::Notify;

use crate::backend::Backend;
use crate::operator::{PAY, POLICIES, Policy};
use crate::scene::Scene;

/// Longer than any test takes.
const LEASE: Duration = Duration::from_secs(3_600);

#[derive(Clone, Copy, Debug)]
enum End {
    Dropped,
    Panicked,
    ShutDown,
}

/// Ends a body after its effect, in a process of its own as far as the store can tell.
async fn end(scene: &Scene, key: &str, policy: Policy, end: End) -> anyhow::Result<()> {
    let owner = Arc::new(scene.another(LEASE)?);
    let had_effect = Arc::new(Notify::new());
    let body = {
        let (owner, had_effect, key) = (owner.clone(), had_effect.clone(), String::from(key));
        tokio::spawn(async move {
            let rest = async {
                had_effect.notify_one();
                match end {
                    End::Panicked => panic!("the body breaks"),
                    End::Dropped | End::ShutDown => std::future::pending().await,
                }
            };
            owner.pay_and(&key, policy, rest).await
        })
    };
    within("the effect", had_effect.notified()).await?;
    match end {
        End::Dropped => body.abort(),
        End::Panicked => {
            ensure!(body.await.is_err_and(|error| error.is_panic()), "the panic reached nobody");
        }
        End::ShutDown => {
            let drained = owner.engine.shutdown(Duration::from_millis(1)).await;
            ensure!(drained.abandoned == 1, "{drained:?}");
            body.abort();
        }
    }
    let is_given_up = async || {
        let record = scene.record_of(PAY, key).await.ok().flatten();
        record.is_some_and(|record| record.state == State::InDoubt || record.is_orphaned())
    };
    eventually_async("the record to be given up, long before its lease ends", is_given_up).await
}

pub async fn a_body_that_ends_without_a_result_is_given_up_at_once_and_its_policy_decides(
    backend: Backend,
) -> anyhow::Result<()> {
    let scene = Scene::new(backend).await?;
    let ends = [End::Dropped, End::Panicked, End::ShutDown];
    let all = POLICIES.iter().flat_map(|policy| ends.iter().map(|end| (*policy, *end)));
    let all = all.map(async |(policy, how)| {
        let key = format!("{policy:?}-{how:?}");
        end(&scene, &key, policy, how).await?;
        let next = within("the next caller", scene.here().pay(&key, policy)).await?;
        let effects = scene.effects(&key)?;
        match (policy, &next) {
            (Policy::Retry | Policy::Resume, Ok(receipt)) => {
                ensure!(effects.len() == 2, "{key}: {} effects", effects.len());
                ensure!(
                    effects[1].result == Some(receipt.bytes()) && effects[1].attempt == 2,
                    "{key}: {effects:?}"
                );
            }
            // Under verify the provider was asked, which does not know.
            (Policy::Hold | Policy::Verify, Err(error))
                if error.kind() == Some(ErrorKind::InDoubt) =>
            {
                ensure!(effects.len() == 1, "{key}: {} effects", effects.len());
            }
            _ => anyhow::bail!("{key}: {next:?}"),
        }
        Ok(())
    });
    try_join_all(all).await?;
    Ok(())
}
