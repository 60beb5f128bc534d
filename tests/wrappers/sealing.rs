//! A store that keeps no body as it is. A toy: what counts is where it stands, not its cipher.

use std::time::Duration;

use bytes::Bytes;
use idempotency::key::KeyHash;
use idempotency::store::transaction::{
    AnyConnection, ClaimAnswer, End, TransactionFuture, Transactions,
};
use idempotency::store::{
    Capabilities, Checkpoint, Claim, ClaimOutcome, Commit, Facets, LocalResults, Record, Resolve,
    ResolveAnswer, Store, StoreError, StoreErrorKind, Token, Watch, WriteOutcome,
};
use sha2::{Digest as _, Sha256};

/// The bytes in front of a sealed body.
const TAG: usize = 16;

/// Everything with a body passes through it, so it wraps the abilities of the store inside.
#[derive(Clone, Debug)]
pub struct Sealing<S> {
    inner: S,
    secret: [u8; 16],
}

impl<S: Store> Sealing<S> {
    pub fn new(inner: S) -> Self {
        Self { inner, secret: *b"correct horse ba" }
    }

    /// The same body of the same key is sealed to the same bytes: a checkpoint that is sent twice
    /// is known by them.
    fn seal(&self, key: &KeyHash, body: &[u8]) -> Bytes {
        let tag = self.tag(key, body);
        let mut sealed = tag.to_vec();
        sealed.extend_from_slice(body);
        self.mix(&tag, &mut sealed[TAG..]);
        sealed.into()
    }

    fn open(&self, key: &KeyHash, sealed: &Bytes) -> Result<Bytes, StoreError> {
        if sealed.is_empty() {
            return Ok(Bytes::new());
        }
        let unreadable =
            || StoreError::new(StoreErrorKind::Corrupt, idempotency::store::Operation::Read);
        let (tag, body) = sealed.split_first_chunk::<TAG>().ok_or_else(unreadable)?;
        let mut body = body.to_vec();
        self.mix(tag, &mut body);
        if self.tag(key, &body) == *tag { Ok(body.into()) } else { Err(unreadable()) }
    }

    fn tag(&self, key: &KeyHash, body: &[u8]) -> [u8; TAG] {
        let digest = Sha256::new().chain_update(self.secret).chain_update(key.as_bytes());
        let digest = digest.chain_update(body).finalize();
        std::array::from_fn(|index| digest[index])
    }

    fn mix(&self, tag: &[u8; TAG], body: &mut [u8]) {
        for (number, block) in body.chunks_mut(4096).enumerate() {
            let digest = Sha256::new().chain_update(self.secret).chain_update(tag);
            let digest = digest.chain_update(number.to_be_bytes()).finalize();
            for (byte, other) in block.iter_mut().zip(digest.iter().cycle()) {
                *byte ^= other;
            }
        }
    }

    fn opened(&self, mut record: Record) -> Result<Record, StoreError> {
        record.body = self.open(&record.key, &record.body)?;
        Ok(record)
    }

    fn opened_claim(&self, claimed: ClaimOutcome) -> Result<ClaimOutcome, StoreError> {
        Ok(match claimed {
            ClaimOutcome::Granted(mut grant) => {
                grant.record = self.opened(grant.record)?;
                ClaimOutcome::Granted(grant)
            }
            ClaimOutcome::Existing(record) => ClaimOutcome::Existing(self.opened(record)?),
            other => other,
        })
    }

    fn sealed(&self, mut commit: Commit) -> Commit {
        commit.body = self.seal(&commit.key, &commit.body);
        commit
    }
}

impl<S: Store> LocalResults for Sealing<S> {
    fn local_result(&self, key: &KeyHash) -> Option<Record> {
        self.opened(self.inner.facets().local_results?.local_result(key)?).ok()
    }
}

impl<S: Store> Transactions for Sealing<S> {
    fn begin<'a>(
        &'a self,
        connection: AnyConnection<'a>,
        claim: &'a Claim,
        patience: Duration,
    ) -> TransactionFuture<'a, ClaimAnswer> {
        Box::pin(async move {
            let inside = self.inner.facets().transactions.expect("it is said only of such a store");
            let mut answer = inside.begin(connection, claim, patience).await?;
            answer.claimed =
                answer.claimed.map(|claimed| self.opened_claim(claimed)).transpose()?;
            Ok(answer)
        })
    }

    fn end<'a>(
        &'a self,
        connection: AnyConnection<'a>,
        token: Token,
        end: End,
    ) -> TransactionFuture<'a, bool> {
        Box::pin(async move {
            let inside = self.inner.facets().transactions.expect("it is said only of such a store");
            let end = match end {
                End::Keep(commit) => End::Keep(self.sealed(commit)),
                End::KeepError(commit) => End::KeepError(self.sealed(commit)),
                other @ (End::Hold(_) | End::Undo) => other,
            };
            inside.end(connection, token, end).await
        })
    }
}

#[deny(clippy::missing_trait_methods)]
impl<S: Store> Store for Sealing<S> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn facets(&self) -> Facets<'_> {
        let inside = self.inner.facets();
        Facets::none()
            .with_local_results(inside.local_results.map(|_| self as &dyn LocalResults))
            .with_change_feed(inside.change_feed)
            .with_transactions(inside.transactions.map(|_| self as &dyn Transactions))
    }

    async fn claim(&self, claim: Claim) -> Result<ClaimOutcome, StoreError> {
        self.opened_claim(self.inner.claim(claim).await?)
    }

    async fn complete(&self, commit: Commit) -> Result<WriteOutcome, StoreError> {
        self.inner.complete(self.sealed(commit)).await
    }

    async fn checkpoint(&self, mut checkpoint: Checkpoint) -> Result<WriteOutcome, StoreError> {
        checkpoint.body = self.seal(&checkpoint.key, &checkpoint.body);
        self.inner.checkpoint(checkpoint).await
    }

    async fn read(&self, key: KeyHash) -> Result<Option<Record>, StoreError> {
        self.inner.read(key).await?.map(|record| self.opened(record)).transpose()
    }

    async fn watch(&self, key: KeyHash) -> Result<Watch, StoreError> {
        let mut watch = self.inner.watch(key).await?;
        watch.record = watch.record.map(|record| self.opened(record)).transpose()?;
        Ok(watch)
    }

    async fn resolve(
        &self,
        mut resolve: Resolve,
    ) -> Result<idempotency::store::AdminOutcome, StoreError> {
        if let ResolveAnswer::Finished { body, .. } = &mut resolve.answer {
            *body = self.seal(&resolve.key, body);
        }
        self.inner.resolve(resolve).await
    }

    crate::around! {
        Renew renew(renewals: Vec<idempotency::store::Renewal>) -> Vec<WriteOutcome>;
        Release release(release: idempotency::store::Release) -> WriteOutcome;
        Abandon abandon(abandon: idempotency::store::Abandon) -> WriteOutcome;
        Park park(park: idempotency::store::Park) -> WriteOutcome;
        Fence fence(key: KeyHash, token: Token) -> Option<u64>;
        Remove remove(remove: idempotency::store::Remove) -> idempotency::store::AdminOutcome;
        Scan scan(scan: idempotency::store::Scan) -> idempotency::store::Page;
        Census census(budget: idempotency::store::CensusBudget) -> idempotency::store::Census;
        Purge purge(limit: usize) -> idempotency::store::PurgeOutcome;
    }
}

impl<S> Sealing<S> {
    async fn around<T: Send>(
        &self,
        _: idempotency::store::Operation,
        request: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        request.await
    }
}
