//! The suite that every store must pass: one test for each rule of [`Store`](crate::store::Store).

pub mod census;
pub mod claims;
pub mod clocks;
pub mod facets;
pub mod handles;
pub mod operators;
pub mod origins;
pub mod owners;
pub mod results;
pub mod retention;
mod scene;
pub mod sizes;
mod stopwatch;
pub mod takeovers;
pub mod watches;
pub mod widths;

use std::pin::Pin;
use std::sync::Arc;

pub use scene::Scene;
use stopwatch::Stopwatch;

use super::Subject;
use crate::clock::SystemClock;

/// Generates one test for each rule that a store must follow.
///
/// Takes a closure or an `async fn` that creates a fresh [`Subject`]. The tests require the feature
/// `testing`, but no runtime of their own. A failure names the rule that was broken. If the machine
/// or the store's server was stalled for most of a lease, a failure says nothing about the store:
/// the case is run again, with another subject and longer leases.
///
/// ```no_run
/// use std::time::Duration;
/// use idempotency::store::MemoryStore;
/// use idempotency::testing::{ClockJump, ManualClock, Subject};
///
/// struct Memory {
///     store: MemoryStore,
///     clock: ManualClock,
/// }
///
/// impl Memory {
///     fn new() -> Self {
///         let clock = ManualClock::new();
///         Self { store: MemoryStore::with_clock(clock.clone()), clock }
///     }
/// }
///
/// impl Subject for Memory {
///     type Store = MemoryStore;
///
///     fn store(&self) -> &MemoryStore {
///         &self.store
///     }
///
///     async fn second(&self) -> MemoryStore {
///         self.store.clone()
///     }
///
///     async fn advance(&self, duration: Duration) {
///         self.clock.advance(duration);
///     }
///
///     fn jump_clock(&self, jump: ClockJump) -> bool {
///         self.clock.jump(jump);
///         true
///     }
/// }
///
/// idempotency::testing::conformance!(|| async { Memory::new() });
/// ```
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance {
    ($start:expr) => {
        $crate::__conformance_list! { [$crate::__conformance_tests] $start }
    };
}

/// Passes the list of all cases to a macro.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_list {
    ([$($macro:tt)*] $($argument:expr)?) => {
        $($macro)* ! {
            $($argument)?;
            claims:
                a_first_claim_is_granted
                keys_are_independent
                a_running_claim_is_held
                a_repeated_claim_is_granted_again
                a_repeated_claim_is_granted_after_its_lease
                an_answer_is_replayed
                a_late_duplicate_claim_can_be_released_again
                a_late_duplicate_claim_harms_nobody
                a_released_record_is_claimed_with_its_attempts
                a_release_forgets_the_attempts_unless_asked
                a_claim_given_back_unused_is_no_attempt
                one_of_64_concurrent_claims_is_granted;
            takeovers:
                an_orphan_is_taken_over
                a_takeover_keeps_the_checkpoint
                a_repeated_takeover_tells_that_it_was_one
                a_takeover_writes_its_own_linger
                an_orphan_under_hold_is_parked
                the_stricter_policy_decides
                who_has_no_question_changes_nothing
                a_contradicting_fingerprint_takes_nothing_over
                an_absent_fingerprint_or_one_of_another_version_takes_nothing_over
                a_doubt_is_asked_again_after_its_backoff
                a_doubt_is_held_under_every_other_policy
                a_repeated_claim_asks_nothing_about_itself
                a_contradicting_fingerprint_asks_nothing_again
                a_takeover_forgets_the_reason
                parking_an_abandoned_record_keeps_its_reason
                one_of_64_concurrent_takeovers_is_granted
                fences_grow_over_takeovers
                fences_grow_over_kept_releases
                fences_grow_over_records_that_are_gone;
            owners:
                a_stale_owner_writes_nothing_after_a_takeover
                a_stranger_writes_nothing
                an_owner_without_record_is_told_so
                a_renewal_prolongs_the_lease
                a_late_renewal_revives_the_lease
                only_a_claim_in_progress_is_renewed
                a_renewal_extends_the_expiry_and_never_shortens_it
                renewals_are_answered_one_by_one
                a_lease_that_was_given_up_is_not_renewed
                an_owner_releases_its_claim
                a_release_leaves_what_was_taken_over
                a_release_leaves_a_doubt
                a_late_owner_releases_its_claim
                a_released_claim_is_written_no_more
                an_abandoned_claim_is_taken_over_at_once
                nothing_is_abandoned_under_hold
                only_a_claim_in_progress_is_abandoned
                an_owner_parks_its_record
                an_owner_says_more_than_an_observer
                an_observer_parks_only_an_orphan
                checkpoints_are_accepted_in_order
                a_checkpoint_can_say_that_nothing_had_begun
                a_checkpoint_sent_twice_counts_once
                a_checkpoint_keeps_lease_and_expiry
                only_the_owner_in_progress_writes_checkpoints
                only_a_claim_in_progress_has_a_fence;
            results:
                an_owner_stores_its_result
                a_result_replaces_the_checkpoint
                bodies_are_opaque
                a_body_of_any_size_leaves_what_the_claim_said
                a_late_result_is_stored
                a_parked_owner_stores_its_result
                a_result_sent_twice_is_stored_once
                an_answer_never_changes
                a_stale_owners_result_is_refused
                a_result_is_completed_or_failed
                a_result_is_kept_for_its_ttl
                a_result_is_returned_with_its_expiry_if_asked
                a_vanished_record_is_written_anew
                a_vanished_record_is_not_written_unless_asked
                an_adoption_ends
                an_adoption_brings_no_expired_result_back
                an_adoption_replaces_nobody
                an_adoption_opens_no_tombstone
                an_adopting_commit_is_a_commit;
            operators:
                a_doubt_is_resolved_with_an_answer
                a_doubt_is_resolved_as_not_executed
                a_late_owner_does_not_undo_an_answer
                an_answer_sent_twice_counts_once
                only_a_doubt_is_resolved
                an_answer_to_another_owner_is_a_conflict
                an_operators_answer_is_corrected
                an_owners_result_is_never_corrected
                a_record_is_removed_unless_its_owner_runs
                a_running_record_is_not_removed
                a_record_of_another_owner_is_not_removed
                a_removal_leaves_the_tombstone_that_was_asked_for
                a_record_removed_by_force_does_not_come_back
                a_tombstone_is_removed
                a_scan_lists_every_record_once
                a_scan_goes_on_at_cursors_of_its_own
                a_scan_lists_keys_with_the_same_digits
                a_scan_lists_what_was_asked_for
                a_scan_lists_what_somebody_has_to_look_at
                a_scan_lists_records_of_a_namespace_and_an_age
                a_scan_lists_the_tombstones_of_expired_records;
            retention:
                an_expired_result_is_absent
                an_expired_unfinished_record_is_absent
                no_operation_needs_another_to_notice_the_expiry
                expired_attempts_are_forgotten
                the_records_own_linger_decides
                a_hundred_years_are_a_time
                an_expired_record_leaves_its_tombstone
                a_purge_takes_only_what_has_expired
                a_purge_removes_what_has_expired_up_to_its_limit;
            census:
                a_census_counts_by_operation_and_state
                a_census_knows_what_is_in_doubt
                a_census_leaves_out_what_has_expired
                a_census_adds_up_the_sizes_of_bodies
                a_census_stops_at_its_budget;
            watches:
                a_watch_begins_with_the_record
                a_watch_is_woken_by_a_result
                a_watch_is_woken_by_a_release
                a_watch_is_woken_by_an_abandonment
                a_watch_is_woken_by_parking
                a_watch_is_woken_by_claims_and_takeovers
                a_watch_is_woken_by_operators
                a_watch_is_woken_by_expiry;
            clocks:
                a_clock_set_back_keeps_the_owner
                a_clock_set_back_revives_no_abandoned_claim
                a_clock_set_forward_makes_no_second_result
                a_clock_set_forward_loses_no_result_under_hold
                a_renewal_after_a_jump_keeps_the_claim;
            handles:
                requests_that_meet_where_no_record_is_have_an_order
                requests_that_meet_on_a_running_record_have_an_order
                requests_that_meet_on_an_abandoned_record_have_an_order
                requests_that_meet_on_a_doubt_have_an_order
                requests_that_meet_on_a_result_have_an_order
                requests_that_meet_on_a_released_record_have_an_order
                a_walk_of_any_requests_follows_the_protocol
                a_reader_sees_no_half_of_a_write
                what_one_handle_wrote_the_other_sees
                fences_grow_over_handles
                a_watch_is_woken_by_another_handle;
            facets:
                a_local_result_is_that_of_the_record;
            origins:
                a_claim_is_kept_with_its_origin
                a_takeover_replaces_holder_and_trace
                a_record_keeps_the_origin_of_its_last_owner;
            widths:
                an_owner_is_known_by_its_whole_token
                a_request_is_known_by_its_whole_fingerprint
                a_record_is_known_by_its_whole_key
                days_and_years_are_kept_as_they_are
                parts_of_a_second_are_kept
                numbers_and_names_are_kept_as_they_are
                tokens_and_fingerprints_of_zeros_and_ones_are_as_good_as_others;
            sizes:
                a_thousand_leases_are_renewed_at_once
                ten_thousand_records_are_kept
                bodies_of_eight_mebibytes_are_kept;
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    ($start:expr; $($module:ident: $($case:ident)*;)*) => {$($(
        #[test]
        fn $case() {
            $crate::testing::conformance::run($start, $crate::testing::conformance::$module::$case);
        }
    )*)*};
}

/// A case of the suite, with its name.
#[doc(hidden)]
pub type Case<S> = (&'static str, fn(Scene<S>) -> Pin<Box<dyn Future<Output = ()> + Send>>);

macro_rules! list {
    (; $($module:ident: $($case:ident)*;)*) => {
        vec![$($((stringify!($case), |scene| Box::pin($module::$case(scene))),)*)*]
    };
}

/// All cases, for [`run`].
#[doc(hidden)]
#[must_use]
pub fn cases<S: Subject>() -> Vec<Case<S>> {
    __conformance_list! { [list] }
}

/// The largest number of runs of a case on a machine that is too busy for it.
const TRIES: u32 = 8;

/// Runs one case and cleans up, whether or not it fails.
#[doc(hidden)]
pub fn run<S, B, F>(start: impl Fn() -> B, case: impl Fn(Scene<S>) -> F)
where
    S: Subject,
    B: Future<Output = S>,
    F: Future<Output = ()> + Send + 'static,
{
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
    runtime.expect("a runtime for the test").block_on(async {
        for tries in 1.. {
            let (subject, stopwatch) =
                (Arc::new(start().await), Arc::new(Stopwatch::start(SystemClock::new())));
            // A machine that was too busy once may be so again: each attempt has a longer lease.
            let lease = subject.lease() * tries;
            let scene = Scene::new(Arc::clone(&subject), lease, Arc::clone(&stopwatch));
            let outcome = tokio::spawn(case(scene)).await;
            let was_late = stopwatch.was_late(lease);
            subject.clean_up().await;
            match outcome {
                Ok(()) => return,
                Err(_) if was_late && tries < TRIES => {}
                Err(failure) => std::panic::resume_unwind(failure.into_panic()),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_case_is_in_the_suite() {
        let list = include_str!("mod.rs");
        let (_, list) = list.split_once("$($argument)?;\n").unwrap();
        let (list, _) = list.split_once("        }\n").unwrap();
        let listed: Vec<&str> =
            list.split_whitespace().filter(|word| !word.ends_with(':')).collect();
        let sources = [
            include_str!("census.rs"),
            include_str!("claims.rs"),
            include_str!("clocks.rs"),
            include_str!("facets.rs"),
            include_str!("handles.rs"),
            include_str!("operators.rs"),
            include_str!("origins.rs"),
            include_str!("owners.rs"),
            include_str!("results.rs"),
            include_str!("retention.rs"),
            include_str!("sizes.rs"),
            include_str!("takeovers.rs"),
            include_str!("watches.rs"),
            include_str!("widths.rs"),
        ];
        let mut defined = 0;
        for definition in sources.iter().flat_map(|source| source.split("pub async fn ").skip(1)) {
            let name = definition.split('<').next().unwrap();
            assert!(
                listed.iter().any(|listed| listed.trim_end_matches(';') == name),
                "{name} is not in the suite"
            );
            defined += 1;
        }
        assert_eq!(listed.len(), defined);
    }
}
