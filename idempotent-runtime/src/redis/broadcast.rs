//! Notifying the near cache of changes by others: invalidation messages of `CLIENT TRACKING …
//! BCAST`, on a connection of their own.
//!
//! The server sends the name of every record that changes, and keeps no state for it. A message is
//! late only by as much as the connection is: messages that were sent before a request have arrived
//! when its answer has, except those of the moment in which the server answers. Those have arrived
//! with the next answer.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use redis::{PushInfo, PushKind, RedisResult, Value};

use super::RedisStore;
use super::error::{is_refused_command, store_error};
use crate::key::KeyHash;
use crate::store::{ChangeFeed, ChangeListener, Operation};

/// The pause before a broken connection is replaced.
const PAUSE: Duration = Duration::from_millis(500);

impl ChangeFeed for RedisStore {
    fn follow(
        &self,
        listener: Arc<dyn ChangeListener>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            loop {
                let Err(error) = self.follow_connected(&listener).await;
                let error = store_error(Operation::Follow, error);
                if is_refused_command(&error) {
                    tracing::warn!(
                        %error,
                        "the server refuses tracking: the near cache learns of removals by its time limit"
                    );
                    return;
                }
                tracing::debug!(%error, "the near cache learns nothing of changes for now");
                self.0.clock.sleep(PAUSE).await;
            }
        })
    }
}

impl RedisStore {
    async fn follow_connected(
        &self,
        listener: &Arc<dyn ChangeListener>,
    ) -> RedisResult<std::convert::Infallible> {
        let (of_pushes, prefix) = (listener.clone(), self.0.prefix.clone());
        let config = self.0.config.clone().set_push_sender(move |push| {
            report(&*of_pushes, &prefix, &push);
            Ok::<(), redis::aio::SendError>(())
        });
        let mut connection =
            self.0.client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut track = redis::cmd("CLIENT");
        track.arg("TRACKING").arg("ON").arg("BCAST").arg("PREFIX").arg(&self.0.prefix);
        track.query_async::<()>(&mut connection).await?;
        // Nothing reported the changes before this point.
        listener.missed_changes();
        let mut last = None;
        loop {
            let sent = listener.now();
            // Any request would do; the store already needs the right to this one.
            redis::cmd("TIME").query_async::<()>(&mut connection).await?;
            // This answer vouches for changes until the previous request was sent: messages of the
            // moment in which the server answers may follow that answer, but they precede the next
            // one.
            if let Some(last) = last.replace(sent) {
                listener.knows_changes_until(last);
            }
            self.0.clock.sleep(listener.patience() / 5).await;
        }
    }
}

fn report(listener: &dyn ChangeListener, prefix: &str, push: &PushInfo) {
    if push.kind != PushKind::Invalidate {
        return;
    }
    let Some(Value::Array(names)) = push.data.first() else {
        // A flush.
        listener.missed_changes();
        return;
    };
    for name in names {
        let Value::BulkString(name) = name else { continue };
        // Longer names are those of bodies staged for a record.
        let hash = name
            .strip_prefix(prefix.as_bytes())
            .and_then(|name| name.strip_prefix(b"{")?.strip_suffix(b"}"));
        if let Some(key) = hash.and_then(|hash| str::from_utf8(hash).ok()?.parse::<KeyHash>().ok())
        {
            listener.changed(&key);
        }
    }
}
