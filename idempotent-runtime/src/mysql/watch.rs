//! Polling the records that callers in this process wait for.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::Row as _;
use sqlx::mysql::MySqlRow;

use super::error::store_error;
use super::query::{Connections, query};
use super::statements::{MOST, Statements, filled_up};
use crate::key::KeyHash;
use crate::sql::{Look, Seen};
use crate::store::codes::{self, STATES};
use crate::store::{Operation, Token};

const OPERATION: Operation = Operation::Watch;

pub(super) fn look(
    connections: Connections,
    statements: Arc<Statements>,
    keys: Vec<KeyHash>,
) -> Look {
    Box::pin(async move {
        let mut all = HashMap::with_capacity(keys.len());
        for keys in keys.chunks(MOST) {
            let keys = filled_up(keys);
            let statement = statements.seen(keys.len());
            let statement = keys
                .iter()
                .fold(query(&statement), |query, key| query.bind(key.as_bytes().to_vec()));
            for row in connections.rows(OPERATION, statement).await? {
                all.extend(seen(&row).map_err(|error| store_error(OPERATION, error))?);
            }
        }
        Ok(all)
    })
}

/// Reads the row; `None` if this release cannot read it: the waiter then reads it, and gets the
/// error.
fn seen(row: &MySqlRow) -> Result<Option<(KeyHash, Seen)>, sqlx::Error> {
    let key = <[u8; 32]>::try_from(row.try_get::<&[u8], _>(0)?);
    let owner = <[u8; 16]>::try_from(row.try_get::<&[u8], _>(1)?);
    let state =
        u8::try_from(row.try_get::<i16, _>(2)?).ok().and_then(|code| codes::value(&STATES, code));
    let given_up = row.try_get::<i64, _>(3)? == 0;
    let (Ok(key), Ok(owner), Some(state)) = (key, owner, state) else { return Ok(None) };
    let owner = Token::from_bits(u128::from_be_bytes(owner));
    Ok(Some((KeyHash::from_bytes(key), Seen { owner, state, given_up })))
}
