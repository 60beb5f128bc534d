//! An owner's writes. Bodies over [`INLINE`] bytes never pass through a script: they are staged under a key of their own
//! with a plain `SET`, and the script renames it.

use redis::{Cmd, RedisError, Script, ScriptInvocation};

use super::{RedisStore, changed, flag, millis, pending, reason, unexpected};
use crate::key::KeyHash;
use crate::store::{
    Changed, Checkpoint, Commit, Record, Renewal, Resolve, ResolveAnswer, StoreError, StoreErrorKind, Token, Written,
    codes, envelope,
};

/// The largest body that goes with the script.
const INLINE: usize = 8 * 1024;
/// How long a staged body lives that no script takes.
const STAGED_MILLIS: u64 = 60_000;

impl RedisStore {
    pub(super) async fn renew_all(&self, renewals: &[Renewal]) -> Result<Vec<Written>, StoreError> {
        const OPERATION: &str = "renew";
        if renewals.is_empty() {
            return Ok(Vec::new());
        }
        let link = &self.0.renewals;
        let script = &self.0.scripts.renew;
        let mut connected = link.connected(OPERATION).await?;
        let mut pipeline = redis::pipe();
        for renewal in renewals {
            pipeline.cmd("EVALSHA").arg(script.get_hash()).arg(1).arg(self.key(&renewal.key));
            pipeline.arg(&renewal.token.bits().to_be_bytes()[..]).arg(millis(renewal.lease));
        }
        let mut answer = pipeline.query_async::<Vec<String>>(&mut connected.connection).await;
        if answer.as_ref().is_err_and(is_unknown_script) {
            let loaded = script.load_async(&mut connected.connection).await;
            link.answer(OPERATION, &connected, loaded)?;
            answer = pipeline.query_async(&mut connected.connection).await;
        }
        let answers = link.answer(OPERATION, &connected, answer)?;
        answers.iter().map(|answer| written(OPERATION, answer)).collect()
    }

    /// Runs a script that takes a token and words.
    pub(super) async fn invoke(
        &self,
        operation: &'static str,
        script: &Script,
        key: &KeyHash,
        token: Token,
        arguments: &[String],
    ) -> Result<String, StoreError> {
        let mut invocation = script.key(self.key(key));
        invocation.arg(&token.bits().to_be_bytes()[..]);
        for argument in arguments {
            invocation.arg(argument);
        }
        self.run(operation, &invocation).await
    }

    async fn run(&self, operation: &'static str, invocation: &ScriptInvocation<'_>) -> Result<String, StoreError> {
        let link = &self.0.commands;
        let mut connected = link.connected(operation).await?;
        let answer = invocation.invoke_async(&mut connected.connection).await;
        link.answer(operation, &connected, answer)
    }

    pub(super) async fn write(
        &self,
        operation: &'static str,
        script: &Script,
        key: &KeyHash,
        token: Token,
        arguments: &[String],
    ) -> Result<Written, StoreError> {
        written(operation, &self.invoke(operation, script, key, token, arguments).await?)
    }

    /// The command that puts a large body under a key of its own.
    fn stage(&self, record: &Record, token: Token) -> Option<Cmd> {
        if record.body.len() <= INLINE {
            return None;
        }
        let mut staging = redis::cmd("SET");
        staging.arg(self.staged_key(&record.key, token)).arg(envelope::encode(record)).arg("PX").arg(STAGED_MILLIS);
        Some(staging)
    }

    /// Runs a script whose body may have to be staged before: both go in one round trip.
    async fn run_staged(
        &self,
        operation: &'static str,
        staging: Option<Cmd>,
        invocation: &ScriptInvocation<'_>,
    ) -> Result<String, StoreError> {
        let Some(staging) = staging else { return self.run(operation, invocation).await };
        let link = &self.0.commands;
        let mut connected = link.connected(operation).await?;
        let mut both = redis::pipe();
        both.add_command(staging).ignore().invoke_script(invocation);
        let answer = both.query_async::<(String,)>(&mut connected.connection).await;
        if answer.as_ref().is_err_and(is_unknown_script) {
            // The body is there by now.
            return self.run(operation, invocation).await;
        }
        // What was not staged, the script did not find and left as it was.
        link.answer(operation, &connected, answer.map_err(first_refusal)).map(|(answer,)| answer)
    }

    /// The body as the script's argument; nothing where it is staged.
    fn inline(staged: bool, body: &[u8]) -> &[u8] {
        if staged { &[] } else { body }
    }

    pub(super) async fn complete_record(&self, commit: &Commit) -> Result<Written, StoreError> {
        const OPERATION: &str = "complete";
        if !commit.state.is_answer() {
            return Ok(Written::Lost);
        }
        let adopted = commit.adopt.as_ref().map(|adoption| {
            let mut record = pending(&adoption.claim, adoption.created);
            record.fence = adoption.fence;
            record.attempts = adoption.attempts;
            record
        });
        let plain = Record::new(commit.key, commit.token, std::sync::Arc::default());
        let mut record = adopted.clone().unwrap_or(plain);
        record.body = commit.body.clone();
        let staging = self.stage(&record, commit.token);
        let mut invocation = self.0.scripts.complete.key(self.key(&commit.key));
        invocation.key(self.staged_key(&commit.key, commit.token));
        invocation
            .arg(&commit.token.bits().to_be_bytes()[..])
            .arg(codes::state_code(commit.state))
            .arg(reason(commit.reason))
            .arg(&commit.schema.to_be_bytes()[..])
            .arg(millis(commit.ttl))
            .arg(flag(staging.is_some()))
            .arg(Self::inline(staging.is_some(), &commit.body))
            .arg(adopted.as_ref().map(envelope::encode).unwrap_or_default())
            .arg(commit.adopt.as_ref().map_or(0, |adoption| adoption.ends.as_millis()));
        written(OPERATION, &self.run_staged(OPERATION, staging, &invocation).await?)
    }

    pub(super) async fn checkpoint_record(&self, checkpoint: &Checkpoint) -> Result<Written, StoreError> {
        const OPERATION: &str = "checkpoint";
        let mut record = Record::new(checkpoint.key, checkpoint.token, std::sync::Arc::default());
        record.body = checkpoint.body.clone();
        let staging = self.stage(&record, checkpoint.token);
        let mut invocation = self.0.scripts.checkpoint.key(self.key(&checkpoint.key));
        invocation.key(self.staged_key(&checkpoint.key, checkpoint.token));
        invocation
            .arg(&checkpoint.token.bits().to_be_bytes()[..])
            .arg(checkpoint.sequence)
            .arg(flag(staging.is_some()))
            .arg(Self::inline(staging.is_some(), &checkpoint.body));
        written(OPERATION, &self.run_staged(OPERATION, staging, &invocation).await?)
    }

    pub(super) async fn resolve_record(&self, resolve: &Resolve) -> Result<Changed, StoreError> {
        const OPERATION: &str = "resolve";
        let mut record = Record::new(resolve.key, resolve.token, std::sync::Arc::default());
        let (state, schema, ttl) = match &resolve.answer {
            ResolveAnswer::NotExecuted => (0, 0, 0),
            ResolveAnswer::Finished { state, body, schema, ttl } => {
                if !state.is_answer() {
                    return Ok(Changed::Conflict);
                }
                record.body = body.clone();
                (codes::state_code(*state), *schema, millis(*ttl))
            }
        };
        let staging = self.stage(&record, resolve.token);
        let mut invocation = self.0.scripts.resolve.key(self.key(&resolve.key));
        invocation.key(self.staged_key(&resolve.key, resolve.token));
        invocation
            .arg(&resolve.observed.bits().to_be_bytes()[..])
            .arg(&resolve.token.bits().to_be_bytes()[..])
            .arg(state)
            .arg(&schema.to_be_bytes()[..])
            .arg(ttl)
            .arg(flag(staging.is_some()))
            .arg(Self::inline(staging.is_some(), &record.body));
        changed(OPERATION, &self.run_staged(OPERATION, staging, &invocation).await?)
    }
}

/// The first of the commands that were sent together and refused, as if it had been sent alone.
fn first_refusal(error: RedisError) -> RedisError {
    let first = error.clone().into_server_errors().and_then(|errors| errors.first().map(|(_, first)| first.clone()));
    first.map_or(error, RedisError::from)
}

fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript)
}

fn written(operation: &'static str, answer: &str) -> Result<Written, StoreError> {
    match answer {
        "applied" => Ok(Written::Applied),
        "already" => Ok(Written::AlreadyApplied),
        "adopted" => Ok(Written::Adopted),
        "lost" => Ok(Written::Lost),
        "gone" => Ok(Written::Gone),
        // The staged body's time was over before the script came: the engine sends both again.
        "unstaged" => {
            Err(StoreError::new(StoreErrorKind::Refused, operation).with_detail("the staged body had expired"))
        }
        other => Err(unexpected(operation, other)),
    }
}
