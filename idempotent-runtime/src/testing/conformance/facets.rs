//! Facets: what a store offers beside its operations.

use super::Scene;
use super::scene::{KEY, answered, token};
use crate::store::{Record, Remove, State, Store as _};
use crate::testing::Subject;

/// The engine takes a local result for the answer of a claim, and sends none.
pub async fn a_local_result_is_that_of_the_record<S: Subject>(scene: Scene<S>) {
    let rule = "a local result is that of the record, whoever has written or removed it, or none";
    let other = &scene.second().await;
    let agrees = async |what: &str| {
        for store in [scene.store(), other] {
            let Some(local_results) = store.facets().local_results else { continue };
            let Some(local) = local_results.local_result(&KEY) else { continue };
            let read = answered(|| store.read(KEY)).await;
            let said = |record: Record| (record.state, record.owner, record.body, record.expires);
            assert_eq!(Some(said(local)), read.map(said), "{rule}: {what}");
        }
    };
    agrees("nothing").await;
    scene.completed(State::Completed).await;
    agrees("a result").await;
    answered(|| other.remove(Remove::new(KEY, token(1)))).await;
    agrees("a removal through another handle").await;
    answered(|| other.claim(scene.claim_by(2))).await;
    for store in [scene.store(), other] {
        let local = store.facets().local_results.and_then(|local| local.local_result(&KEY));
        assert!(local.is_none(), "{rule}: a claim");
    }
    answered(|| other.complete(scene.commit_by(2, "second"))).await;
    agrees("another result").await;
    scene.pass_expiry().await;
    agrees("an expired result").await;
}
