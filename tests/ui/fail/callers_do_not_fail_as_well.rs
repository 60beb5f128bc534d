use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "0s")]
async fn charge(id: u64) -> Result<u64, Error> {
    Ok(id)
}

struct Payments;

impl Payments {
    #[idempotent(key = id)]
    async fn refund(&self, id: u64) -> Result<u64, Error> {
        Ok(id)
    }
}

async fn caller() -> Result<u64, Error> {
    Ok(charge(1).await? + Payments.refund(2).await?)
}

fn main() {
    drop(caller());
}
