//! Each mistake is found, by the invariant that exists for it. The shortest path to it is printed.

use crate::check::fails;
use crate::invariants::{R5, S1, S2, S3, S3_STEPS, S4, S5, S6, S7, S8, S8_WRITES};
use crate::protocol::{Mutant, Policy, Protocol};
use crate::transaction::{TransactionMutant, Transactions};

fn protocol(policy: Policy, mutant: Mutant) -> Protocol {
    Protocol::new(policy).with(mutant)
}

#[test]
fn a_commit_without_owner_check_is_found() {
    fails(&protocol(Policy::Retry, Mutant::CommitOfAnybody), S8_WRITES);
    fails(&protocol(Policy::Retry, Mutant::CommitOfAnybody), S1);
}

#[test]
fn a_commit_over_a_result_is_found() {
    fails(&protocol(Policy::Retry, Mutant::CommitOverResult), S2);
}

#[test]
fn a_commit_before_the_effect_is_found() {
    fails(&protocol(Policy::Hold, Mutant::CommitFirst), S8);
}

#[test]
fn an_unconditional_delete_is_found() {
    fails(&protocol(Policy::Hold, Mutant::UnconditionalDelete).faults(2), S8_WRITES);
    fails(&protocol(Policy::Hold, Mutant::UnconditionalDelete).faults(2), S5);
}

#[test]
fn a_drop_that_deletes_after_the_effect_is_found() {
    fails(&protocol(Policy::Hold, Mutant::DropDeletes), S5);
    fails(&protocol(Policy::Retry, Mutant::DropDeletes), S3);
}

#[test]
fn a_deadline_counted_from_the_answer_is_found() {
    fails(&protocol(Policy::Retry, Mutant::DeadlineFromAnswer), S7);
}

#[test]
fn a_deadline_counted_from_a_retry_is_found() {
    fails(&protocol(Policy::Retry, Mutant::DeadlineFromRetry).faults(2), S7);
}

#[test]
fn a_failover_that_loses_writes_is_found() {
    fails(&protocol(Policy::Hold, Mutant::StoreForgets), S5);
    fails(&protocol(Policy::Retry, Mutant::StoreForgets), S1);
}

#[test]
fn a_question_while_the_owner_lives_is_found() {
    fails(&protocol(Policy::VerifyWhenOver, Mutant::AskedTooEarly), S5);
}

#[test]
fn a_resolve_that_keeps_the_old_token_is_found() {
    fails(&protocol(Policy::Hold, Mutant::ResolveKeepsToken), S1);
}

#[test]
fn a_ghost_claim_is_found() {
    fails(&protocol(Policy::Hold, Mutant::GhostClaim), R5);
}

#[test]
fn a_readers_own_linger_is_found() {
    fails(&protocol(Policy::Retry, Mutant::OwnLinger), S7);
}

#[test]
fn a_forgotten_fence_is_found() {
    fails(&protocol(Policy::Retry, Mutant::FenceForgotten), S4);
}

#[test]
fn a_release_of_what_an_earlier_owner_left_is_found() {
    fails(&protocol(Policy::VerifyWhenOver, Mutant::ReleaseForgetsTakeover).faults(2), S5);
}

#[test]
fn an_adoption_without_end_is_found() {
    fails(&protocol(Policy::Retry, Mutant::AdoptsForEver), S2);
}

#[test]
fn a_doubt_that_its_owner_takes_back_is_found() {
    fails(&protocol(Policy::VerifyWithKey, Mutant::DoubtTakenBack).faults(2), R5);
}

#[test]
fn an_error_that_forgets_finished_steps_is_found() {
    fails(&protocol(Policy::Resume, Mutant::ErrorForgetsSteps), S3_STEPS);
}

#[test]
fn an_error_that_forgets_a_running_step_is_found() {
    fails(&protocol(Policy::Hold, Mutant::ErrorForgetsRunning), S5);
    fails(&protocol(Policy::Retry, Mutant::ErrorForgetsRunning), S3);
}

#[test]
fn a_transaction_that_does_not_wait_for_another_is_found() {
    fails(&Transactions::new(2).with(TransactionMutant::DoesNotWait), S6);
}

#[test]
fn a_result_outside_of_its_transaction_is_found() {
    fails(&Transactions::new(2).with(TransactionMutant::ResultOutside), S6);
}

#[test]
fn a_claim_with_a_lease_that_is_committed_without_result_is_found() {
    fails(&Transactions::new(2).with(TransactionMutant::Retries), S6);
}
