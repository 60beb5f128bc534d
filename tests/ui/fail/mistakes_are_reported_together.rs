use idempotency::idempotent;

#[idempotent(kye = id, ttl = "24 moons", on_crash = verify, name = "")]
fn charge(id: u64) -> u64 {
    id
}

fn main() {}
