//! Claim, effect and record in the user's own transaction.

mod outcomes;
mod world;
