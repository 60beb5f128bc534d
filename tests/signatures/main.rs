//! Every kind of function that the attribute can be on, executed.

mod attributes;
#[path = "../support/effects.rs"]
mod effects;
mod free_functions;
mod generics;
mod guards;
mod patterns;
mod receivers;
mod results;
mod sending;
mod traits;

use std::collections::HashMap;
use std::fmt::{Debug, Display};
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use effects::{Effects, once};
use idempotency::store::MemoryStore;
use idempotency::{Error, ErrorKind, Idempotency, WithEngine as _, idempotent};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    id: u64,
    user: String,
    amount: u32,
}

fn order() -> Order {
    Order { id: 7, user: "ada".to_owned(), amount: 40 }
}
