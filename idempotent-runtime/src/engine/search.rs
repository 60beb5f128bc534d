//! The search for records by the first digits of their hash, which is all that errors and logs
//! show.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Inner;
use super::records::Pages;
use crate::error::{Error, ErrorKind};
use crate::key::{HashPrefix, KeyHash, ParseHashPrefixError};
use crate::store::Scan;

/// The largest number of names that are returned. Two would show that the digits are not enough;
/// the third shows a person that there may be many.
const MOST: usize = 3;

/// Returns the names that begin with `prefix`, at most [`MOST`].
pub(super) async fn find(engine: &Arc<Inner>, prefix: &str) -> Result<Vec<KeyHash>, Error> {
    let prefix: HashPrefix = prefix.parse().map_err(|error: ParseHashPrefixError| {
        Error::new(ErrorKind::InvalidKey)
            .with_text("the digits cannot be searched for", "write 8 to 64 hexadecimal digits")
            .with_source(error)
    })?;
    let scan = Scan { begins_with: Some(prefix), limit: MOST, ..Scan::default() };
    let mut pages = Pages::new(Arc::clone(engine), scan);
    let mut found = BTreeSet::new();
    while found.len() < MOST
        && let Some(page) = pages.next().await?
    {
        let keys = page.records.iter().map(|record| record.key).chain(page.unreadable);
        found.extend(keys.filter(|key| prefix.includes(key)));
    }
    Ok(found.into_iter().take(MOST).collect())
}
