//! The search for records by the first digits of their hash, which is all that errors and logs
//! show.

use super::Inner;
use super::retry::Budget;
use crate::error::{Error, ErrorKind};
use crate::key::{HashRange, KeyHash};
use crate::store::Scan;

/// The largest number of names that are returned. Two would show that the digits are not enough;
/// the third shows a person that there may be many.
const MOST: usize = 3;

/// Returns the names that begin with `prefix`, at most [`MOST`].
pub(super) async fn find(engine: &Inner, prefix: &str) -> Result<Vec<KeyHash>, Error> {
    let range = HashRange::of_prefix(prefix).ok_or_else(|| {
        Error::new(ErrorKind::InvalidKey)
            .with_text("the digits cannot be searched for", "write 8 to 64 hexadecimal digits")
    })?;
    engine.at_home()?;
    let (mut scan, mut found) = (Scan::default(), Vec::new());
    (scan.after, scan.limit) = (range.before(), MOST);
    loop {
        let budget = Budget::of(engine.settings.claim_timeout);
        let page = engine.store.scan(budget, &scan).await.map_err(|error| {
            let error = engine.store_error(error);
            match error.kind() {
                ErrorKind::StoreUnavailable => {
                    error.with_text("the records could not be listed", "try again later")
                }
                _ => error,
            }
        })?;
        let keys = page.records.iter().map(|record| record.key).chain(page.unreadable);
        found.extend(keys.filter(|key| range.contains(key)));
        match page.next {
            Some(next) if found.len() < MOST && range.contains(&next) => scan.after = Some(next),
            _ => break,
        }
    }
    // The records of a page and the names of those that cannot be read are lists of their own.
    found.sort_unstable();
    found.truncate(MOST);
    Ok(found)
}
