use idempotency::{Error, ErrorAction, idempotent};

struct Receipt(u64);

#[idempotent(key = id, ttl = "24h", on_error = |_| ErrorAction::Hold)]
async fn charge(id: u64) -> Result<Receipt, Error> {
    Ok(Receipt(id))
}

fn main() {}
