//! The census of an engine's records, for operators.

use super::Inner;
use crate::error::{Error, ErrorKind};
use crate::store::{Census, CensusBudget};

/// Counts the records of the engine's namespace.
pub(super) async fn census(engine: &Inner, budget: CensusBudget) -> Result<Census, Error> {
    engine.at_home()?;
    let census = engine.store.census(&budget).await.map_err(|error| {
        let error = engine.store_error(error);
        if error.kind() == ErrorKind::StoreUnavailable {
            error.with_text("the records could not be counted", "try again later")
        } else {
            error
        }
    })?;
    Ok(census.of_namespace(&engine.settings.namespace))
}
