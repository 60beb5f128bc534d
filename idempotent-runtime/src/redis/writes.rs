//! An owner's writes. Bodies over [`INLINE`] bytes never pass through a script: they are staged
//! under a key of their own with a plain `SET`, and the script renames it.
//!
//! The key belongs to one request. A checkpoint and a commit of one owner may be in flight at once,
//! and the network may deliver a staged body twice: a script finds the body that came with it, or
//! none.

use std::sync::Arc;

use bytes::Bytes;
use redis::{Cmd, RedisError, RedisResult, Script, ScriptInvocation, Value};

use super::error::is_foreign;
use super::{RedisStore, changed, flag, millis, pending, reason, unexpected};
use crate::key::KeyHash;
use crate::store::{
    AdminOutcome, Checkpoint, Commit, Operation, Record, Renewal, Resolve, ResolveAnswer,
    StoreError, StoreErrorKind, Token, WriteOutcome, codes, envelope,
};

/// The size of the largest body that is sent with the script.
const INLINE: usize = 8 * 1024;
/// The lifetime of a staged body that no script uses.
const STAGED_MILLIS: u64 = 60_000;
/// The answer of a script that has missed its staged body, and has changed nothing.
const UNSTAGED: &str = "unstaged";

impl RedisStore {
    pub(super) async fn renew_all(
        &self,
        renewals: &[Renewal],
    ) -> Result<Vec<WriteOutcome>, StoreError> {
        const OPERATION: Operation = Operation::Renew;
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
        // A key that other software has overwritten does not cost the others their answers.
        pipeline.ignore_errors();
        let mut answers =
            pipeline.query_async::<Vec<RedisResult<String>>>(&mut connected.connection).await;
        if answers.as_ref().is_ok_and(|answers| {
            answers.iter().any(|answer| answer.as_ref().is_err_and(is_unknown_script))
        }) {
            let loaded = script.load_async(&mut connected.connection).await;
            link.answer(OPERATION, &connected, loaded)?;
            answers = pipeline.query_async(&mut connected.connection).await;
        }
        let answers = link.answer(OPERATION, &connected, answers)?;
        // All failed for one reason, which lies with the server.
        if answers.iter().all(|answer| answer.as_ref().is_err_and(|error| !is_foreign(error)))
            && let Some(Err(error)) = answers.first()
        {
            return link.answer(OPERATION, &connected, Err(error.clone()));
        }
        let one = |answer: RedisResult<String>| match answer {
            Ok(answer) => written(OPERATION, &answer).unwrap_or(WriteOutcome::Unanswered),
            // Nothing that is there belongs to the owner.
            Err(error) if is_foreign(&error) => WriteOutcome::Lost,
            Err(_) => WriteOutcome::Unanswered,
        };
        Ok(answers.into_iter().map(one).collect())
    }

    /// Runs a script that takes a token and further arguments.
    pub(super) async fn invoke(
        &self,
        operation: Operation,
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

    async fn run(
        &self,
        operation: Operation,
        invocation: &ScriptInvocation<'_>,
    ) -> Result<String, StoreError> {
        let link = &self.0.commands;
        let mut connected = link.connected(operation).await?;
        let answer = invocation.invoke_async(&mut connected.connection).await;
        link.answer(operation, &connected, answer)
    }

    pub(super) async fn write(
        &self,
        operation: Operation,
        script: &Script,
        key: &KeyHash,
        token: Token,
        arguments: &[String],
    ) -> Result<WriteOutcome, StoreError> {
        written(operation, &self.invoke(operation, script, key, token, arguments).await?)
    }

    /// Prepares `body` for a request: inline, or staged.
    fn carried<'b>(
        &self,
        operation: Operation,
        key: &KeyHash,
        body: &'b Bytes,
    ) -> Result<Carried<'b>, StoreError> {
        if body.len() <= INLINE {
            return Ok(Carried { inline: body, staging: None });
        }
        let name = self.staged_key(operation, key)?;
        // The script fills in the fields and the texts of the record.
        let mut record = Record::new(*key, Token::from_bits(0), Arc::default());
        record.body = body.clone();
        let mut command = redis::cmd("SET");
        command.arg(&name).arg(envelope::encode(&record)).arg("PX").arg(STAGED_MILLIS);
        Ok(Carried { inline: &[], staging: Some(Staging { name, command }) })
    }

    /// Runs a script; stages a large body before it, in the same round trip.
    async fn run_carrying(
        &self,
        operation: Operation,
        script: &Script,
        carried: &Carried<'_>,
        invocation: &ScriptInvocation<'_>,
    ) -> Result<String, StoreError> {
        match &carried.staging {
            None => self.run(operation, invocation).await,
            // Boxed: few bodies are so large, and the future of every request would have room for
            // it.
            Some(staging) => {
                Box::pin(self.run_staged(operation, script, staging, invocation)).await
            }
        }
    }

    async fn run_staged(
        &self,
        operation: Operation,
        script: &Script,
        staging: &Staging,
        invocation: &ScriptInvocation<'_>,
    ) -> Result<String, StoreError> {
        let link = &self.0.commands;
        let mut connected = link.connected(operation).await?;
        let mut both = redis::pipe();
        // Each has an answer of its own: the script may need no staged body, for example because the
        // result is stored already.
        both.ignore_errors().add_command(staging.command.clone()).invoke_script(invocation);
        let mut answer = both.query_async(&mut connected.connection).await.and_then(of_script);
        if answer.as_ref().is_err_and(is_unknown_script) {
            let loaded = script.load_async(&mut connected.connection).await;
            link.answer(operation, &connected, loaded)?;
            // Both again: loading may have taken any time, and the staged body may have expired.
            answer = both.query_async(&mut connected.connection).await.and_then(of_script);
        }
        link.answer(operation, &connected, answer)
    }

    pub(super) async fn complete_record(
        &self,
        commit: &Commit,
    ) -> Result<WriteOutcome, StoreError> {
        const OPERATION: Operation = Operation::Complete;
        if !commit.state.is_answer() {
            return Ok(WriteOutcome::Lost);
        }
        let adopted = commit.adopt.as_ref().map(|adoption| {
            let mut record = pending(&adoption.claim, adoption.created);
            record.fence = adoption.fence;
            record.attempts = adoption.attempts;
            record
        });
        let carried = self.carried(OPERATION, &commit.key, &commit.body)?;
        let script = &self.0.scripts.complete;
        let mut invocation = carried.invocation(script, self.key(&commit.key));
        invocation
            .arg(&commit.token.bits().to_be_bytes()[..])
            .arg(codes::state_code(commit.state))
            .arg(reason(commit.reason))
            .arg(&commit.schema.to_be_bytes()[..])
            .arg(millis(commit.ttl))
            .arg(flag(carried.staging.is_some()))
            .arg(carried.inline)
            .arg(adopted.as_ref().map(envelope::encode).unwrap_or_default())
            .arg(commit.adopt.as_ref().map_or(0, |adoption| adoption.ends.as_millis()));
        written(OPERATION, &self.run_carrying(OPERATION, script, &carried, &invocation).await?)
    }

    pub(super) async fn checkpoint_record(
        &self,
        checkpoint: &Checkpoint,
    ) -> Result<WriteOutcome, StoreError> {
        const OPERATION: Operation = Operation::Checkpoint;
        let carried = self.carried(OPERATION, &checkpoint.key, &checkpoint.body)?;
        let script = &self.0.scripts.checkpoint;
        let mut invocation = carried.invocation(script, self.key(&checkpoint.key));
        invocation
            .arg(&checkpoint.token.bits().to_be_bytes()[..])
            .arg(checkpoint.sequence)
            .arg(flag(carried.staging.is_some()))
            .arg(carried.inline)
            .arg(flag(checkpoint.nothing_began));
        written(OPERATION, &self.run_carrying(OPERATION, script, &carried, &invocation).await?)
    }

    pub(super) async fn resolve_record(
        &self,
        resolve: &Resolve,
    ) -> Result<AdminOutcome, StoreError> {
        const OPERATION: Operation = Operation::Resolve;
        let nothing = Bytes::new();
        let (state, schema, ttl, body) = match &resolve.answer {
            ResolveAnswer::NotExecuted => (0, 0, 0, &nothing),
            ResolveAnswer::Finished { state, body, schema, ttl } => {
                if !state.is_answer() {
                    return Ok(AdminOutcome::Conflict);
                }
                (codes::state_code(*state), *schema, millis(*ttl), body)
            }
        };
        let carried = self.carried(OPERATION, &resolve.key, body)?;
        let script = &self.0.scripts.resolve;
        let mut invocation = carried.invocation(script, self.key(&resolve.key));
        invocation
            .arg(&resolve.observed.bits().to_be_bytes()[..])
            .arg(&resolve.token.bits().to_be_bytes()[..])
            .arg(state)
            .arg(&schema.to_be_bytes()[..])
            .arg(ttl)
            .arg(flag(carried.staging.is_some()))
            .arg(carried.inline);
        changed(OPERATION, &self.run_carrying(OPERATION, script, &carried, &invocation).await?)
    }
}

/// A body in transit: with the script, or under a key of its own.
struct Carried<'b> {
    inline: &'b [u8],
    staging: Option<Staging>,
}

/// The command that stages a large body under `name`.
struct Staging {
    name: String,
    command: Cmd,
}

impl Carried<'_> {
    /// Prepares `script` on the record at `key`, and on the body that is staged for it.
    fn invocation<'s>(&self, script: &'s Script, key: String) -> ScriptInvocation<'s> {
        let mut invocation = script.key(key);
        if let Some(staging) = &self.staging {
            invocation.key(&staging.name);
        }
        invocation
    }
}

/// Returns the answer of a script for which a body was staged. If that was refused and the script
/// has missed it, the refusal is the answer.
fn of_script((staged, answered): (Value, Value)) -> RedisResult<String> {
    let staged = staged.extract_error();
    let answer = answered.extract_error().and_then(|answer| Ok(redis::from_redis_value(answer)?));
    match (staged, answer) {
        // The script is loaded, and both are sent again.
        (Err(_), Err(error)) if is_unknown_script(&error) => Err(error),
        (Err(refusal), Err(_)) => Err(refusal),
        (Err(refusal), Ok(answer)) if answer == UNSTAGED => Err(refusal),
        (_, answer) => answer,
    }
}

fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript)
}

fn written(operation: Operation, answer: &str) -> Result<WriteOutcome, StoreError> {
    match answer {
        "applied" => Ok(WriteOutcome::Applied),
        "already" => Ok(WriteOutcome::AlreadyApplied),
        "adopted" => Ok(WriteOutcome::Adopted),
        "lost" => Ok(WriteOutcome::Lost),
        "gone" => Ok(WriteOutcome::Gone),
        // The staged body expired before the script ran: the engine sends both again.
        UNSTAGED => Err(StoreError::new(StoreErrorKind::Refused, operation)
            .with_detail("the staged body had expired")),
        other => Err(unexpected(operation, other)),
    }
}
