use idempotency::{OnError, idempotent};

#[derive(Debug, thiserror::Error)]
enum PayError {
    #[error("declined")]
    Declined,
    #[error(transparent)]
    Idempotency(#[from] idempotency::Error),
}

#[idempotent(key = id, ttl = "24h", on_error = |_| OnError::Store)]
async fn charge(id: u64) -> Result<u64, PayError> {
    if id == 0 { Err(PayError::Declined) } else { Ok(id) }
}

fn main() {}
