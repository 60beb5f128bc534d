//! The checks of a server when a store connects to it.

use redis::InfoDict;

use super::RedisStore;
use super::error::is_refused_command;
use crate::store::{Operation, StoreError, StoreErrorKind};

/// The oldest release with `SET … NX GET`.
const OLDEST: u32 = 7;

pub(super) async fn server(store: &RedisStore, allow_eviction: bool) -> Result<(), StoreError> {
    let link = &store.0.commands;
    let mut connected = link.connected(Operation::Connect).await?;
    let info: redis::RedisResult<InfoDict> =
        redis::cmd("INFO").query_async(&mut connected.connection).await;
    let info = match link.answer(Operation::Connect, &connected, info) {
        Ok(info) => info,
        Err(error) if is_refused_command(&error) => {
            tracing::warn!(%error,
                "the server does not report its settings: it is not known whether it can lose \
                 records");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    version(&info)?;
    cluster(&info)?;
    eviction(&info, allow_eviction)?;
    persistence(&info);
    Ok(())
}

fn version(info: &InfoDict) -> Result<(), StoreError> {
    let version: String = info.get("redis_version").unwrap_or_default();
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < OLDEST) {
        return Err(StoreError::new(StoreErrorKind::Unsupported, Operation::Connect).with_detail(
            format!("the server is Redis {version}; Redis 7.0 or later, or Valkey, is required"),
        ));
    }
    Ok(())
}

/// Rejects a cluster: a node answers only for its own slots, and refuses all others.
fn cluster(info: &InfoDict) -> Result<(), StoreError> {
    if info.get::<u8>("cluster_enabled") == Some(1) {
        return Err(StoreError::new(StoreErrorKind::Config, Operation::Connect).with_detail(
            "the server is a node of a Redis Cluster, which this store does not support: use a \
             server that has all keys",
        ));
    }
    Ok(())
}

fn eviction(info: &InfoDict, allowed: bool) -> Result<(), StoreError> {
    let limit: Option<u64> = info.get("maxmemory");
    let policy: Option<String> = info.get("maxmemory_policy");
    let is_limited = !matches!(limit, None | Some(0));
    let policy = match policy {
        Some(policy) if policy != "noeviction" => policy,
        None if is_limited => "not reported".to_owned(),
        _ => return Ok(()),
    };
    if !is_limited {
        // Nothing is evicted without a limit. One that is set later takes effect at once, and no
        // connection notices it.
        let now =
            if limit.is_none() { "reports no memory limit" } else { "has no memory limit now" };
        tracing::warn!(
            "the server {now}, and would evict records under one \
             (`maxmemory-policy {policy}`): set `maxmemory-policy noeviction`"
        );
        return Ok(());
    }
    let detail = format!(
        "the server may evict records (`maxmemory-policy {policy}`), and each evicted record is a call that runs again: \
         set `maxmemory-policy noeviction`"
    );
    if allowed {
        tracing::warn!("{detail}");
        return Ok(());
    }
    Err(StoreError::new(StoreErrorKind::Config, Operation::Connect)
        .with_detail(format!("{detail}, or call `allow_eviction()`")))
}

fn persistence(info: &InfoDict) {
    if info.get::<u8>("aof_enabled") == Some(0) {
        tracing::warn!(
            "the server has no append-only file: records are lost when it restarts, and their calls run again"
        );
    }
}
