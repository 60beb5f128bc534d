//! Counting records, for operators: one walk of the database's keys.

use super::RedisStore;
use super::scan::{BATCH, STEP};
use crate::clock::Clock as _;
use crate::store::census::percent_of;
use crate::store::{Census, CensusBudget, CensusGroup, Operation, StoreError};

const OPERATION: Operation = Operation::Census;

impl RedisStore {
    pub(super) async fn count_records(&self, budget: &CensusBudget) -> Result<Census, StoreError> {
        let clock = &self.0.clock;
        let began = clock.monotonic();
        let is_over = || clock.monotonic().saturating_sub(began) >= budget.time;
        let (mut census, mut step) = (Census::new(), 0);
        loop {
            // The server goes through its table with the bits of the place in reverse order, however
            // large the table is.
            let percent = percent_of(u64::reverse_bits(step));
            if is_over() {
                return Ok(census.stopped(Some(percent)));
            }
            step = match self.count_step(step, &mut census).await {
                Ok(0) => return Ok(census),
                Ok(next) => next,
                // After the first step there is something that an error would discard.
                Err(error) if error.is_transient() && step != 0 => {
                    tracing::debug!(percent, %error, "a census ends early");
                    return Ok(census.stopped(Some(percent)));
                }
                Err(error) => return Err(error),
            };
        }
    }

    /// Counts the records of one step of the walk. Returns the place of the next one, which is zero
    /// after the last.
    async fn count_step(&self, step: u64, census: &mut Census) -> Result<u64, StoreError> {
        let (next, keys) = self.keys(OPERATION, "", step, STEP).await?;
        for batch in keys.chunks(BATCH) {
            for (key, head) in self.heads(OPERATION, batch).await? {
                match head {
                    Ok(head) => {
                        census.at = census.at.max(head.record.read_at);
                        let group = CensusGroup::of(&head.record);
                        census.add_group(CensusGroup { bytes: head.length, ..group });
                    }
                    Err(error) => {
                        tracing::debug!(%key, %error, "a record cannot be read");
                        census.unreadable += 1;
                    }
                }
            }
        }
        Ok(next)
    }
}
