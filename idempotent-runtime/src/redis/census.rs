//! Counting records, for operators: one walk of the database's keys.

use super::RedisStore;
use super::scan::{BATCH, STEP};
use crate::clock::Clock as _;
use crate::store::census::percent_of;
use crate::store::{Budget, Census, CensusGroup, Operation, StoreError};

const OPERATION: Operation = Operation::Census;

impl RedisStore {
    pub(super) async fn count_records(&self, budget: &Budget) -> Result<Census, StoreError> {
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
            if next == 0 {
                return Ok(census);
            }
            step = next;
        }
    }
}
