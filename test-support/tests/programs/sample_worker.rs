//! Claims once, has one effect and commits, on a store of its own. The argument is the path of
//! the effect log.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use idempotency_test_support::effects::EffectLog;
use idempotency_test_support::worker::{AFTER_EFFECT, BEFORE_EFFECT, KillPointStore, KillPoints};
use idempotent_runtime::key::KeyHash;
use idempotent_runtime::store::{
    Claim, ClaimOutcome, Commit, MemoryStore, Renewal, Store as _, Token,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let path = std::env::args_os().nth(1).context("the path of the effect log is missing")?;
    let effects = EffectLog::open(path)?;
    let points = KillPoints::from_env();
    let store = KillPointStore::new(Arc::new(MemoryStore::new()), points.clone());
    let (key, token) = (KeyHash::from_bytes([1; 32]), Token::from_bits(1));

    println!("started");
    let claim = Claim::new(key, token, Arc::from("sample"));
    let ClaimOutcome::Granted(_) = store.claim(claim).await? else {
        bail!("somebody else holds the claim")
    };
    points.reach(BEFORE_EFFECT).await;
    effects.append("key effect")?;
    points.reach(AFTER_EFFECT).await;
    store.renew(vec![Renewal::new(key, token, Duration::from_secs(15))]).await?;
    store.complete(Commit::new(key, token, "done".into(), Duration::from_secs(60))).await?;
    println!("committed");
    Ok(())
}
