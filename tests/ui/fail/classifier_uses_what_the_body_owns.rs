use idempotency::{Error, Unstored, idempotent};

#[idempotent(key = id, ttl = "24h", on_error = |_| if note.is_empty() { Unstored::Hold } else { Unstored::Release })]
async fn charge(id: u64, note: String) -> Result<String, Error> {
    Ok(format!("{id}{note}"))
}

fn main() {}
