use idempotency::{Error, idempotent};

struct Order {
    id: u64,
}

#[idempotent(key = "id", ttl = "24h")]
async fn by_name(id: u64) -> Result<u64, Error> {
    Ok(id)
}

#[idempotent(key = "order.id", ttl = "24h")]
async fn by_path(order: &Order) -> Result<u64, Error> {
    Ok(order.id)
}

#[idempotent(key = "#id", ttl = "24h")]
async fn by_word(id: u64) -> Result<u64, Error> {
    Ok(id)
}

#[idempotent(key = "order:#id", ttl = "24h")]
async fn by_word_after_text(id: u64) -> Result<u64, Error> {
    Ok(id)
}

#[idempotent(key = r"type", ttl = "24h")]
async fn by_raw_name(r#type: u64) -> Result<u64, Error> {
    Ok(r#type)
}

#[idempotent(key = "ID", ttl = "24h")]
#[allow(non_snake_case)]
async fn by_name_in_capitals(ID: u64) -> Result<u64, Error> {
    Ok(ID)
}

#[idempotent(key = b"id", ttl = "24h")]
async fn by_bytes((id, _): (u64, u64)) -> Result<u64, Error> {
    Ok(id)
}

#[idempotent(key = concat!("order", ".id"), ttl = "24h")]
async fn by_parts(order: &Order) -> Result<u64, Error> {
    Ok(order.id)
}

#[idempotent(key = ("order", "id"), ttl = "24h")]
async fn by_pair(order: &Order, id: u64) -> Result<u64, Error> {
    Ok(order.id + id)
}

impl Order {
    #[idempotent(key = "self.id", ttl = "24h")]
    async fn by_self(&self) -> Result<u64, Error> {
        Ok(self.id)
    }
}

fn main() {}
