use idempotency::{Error, idempotent};

#[idempotent(key = id, scope = "tenant", ttl = "24h")]
async fn charge(id: u64, tenant: &str) -> Result<usize, Error> {
    Ok(tenant.len() + id as usize)
}

fn main() {}
