//! The project's commands: `cargo xtask test`.
fn main() {}
