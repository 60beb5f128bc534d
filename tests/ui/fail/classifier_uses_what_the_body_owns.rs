use idempotency::{Error, ErrorAction, idempotent};

#[idempotent(key = id, ttl = "24h", on_error = |_| if note.is_empty() { ErrorAction::Hold } else { ErrorAction::Release })]
async fn charge(id: u64, note: String) -> Result<String, Error> {
    Ok(format!("{id}{note}"))
}

fn main() {}
