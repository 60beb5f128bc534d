use idempotency::{Error, idempotent};

#[idempotent(key = text, ttl = "24h")]
async fn charge<'a>(text: &'a str) -> Result<std::borrow::Cow<'a, str>, Error> {
    Ok(text.into())
}

fn main() {}
