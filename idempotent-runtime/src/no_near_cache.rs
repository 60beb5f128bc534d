//! The stand-in for the near cache where its feature is off: there is never one.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::StoreClient;
use crate::key::KeyHash;
use crate::store::Record;

pub(crate) enum NearCache {}

impl NearCache {
    pub(crate) fn get(&self, _: &KeyHash) -> Option<Arc<Record>> {
        match *self {}
    }

    pub(crate) fn begin_lookup(&self, _: KeyHash) -> Lookup<'_> {
        match *self {}
    }

    pub(crate) fn forget(&self, _: &KeyHash) {
        match *self {}
    }

    #[expect(clippy::unused_async, reason = "it is one where the feature is on")]
    pub(crate) async fn follow(self: Arc<Self>, _: StoreClient) {
        match *self {}
    }
}

pub(crate) struct Lookup<'cache>(&'cache NearCache);

impl Lookup<'_> {
    pub(crate) fn found(self, _: &Arc<Record>) {
        match *self.0 {}
    }

    pub(crate) fn keep(self, _: &Arc<Record>, _: Duration) {
        match *self.0 {}
    }
}
