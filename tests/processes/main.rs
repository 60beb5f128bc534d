//! Real processes on real stores: many at once, killed at every point of a call, and stopped beyond
//! their lease.

mod agreement;
mod answers;
mod backend;
mod ends;
mod expiry;
mod fulfilment;
mod kills;
mod operator;
mod provider;
mod questions;
mod scene;
mod service;
mod steps;
mod stops;
mod worker;

use backend::Backend;

macro_rules! tests {
    ($backend:expr; $($module:ident::$test:ident,)*) => {
        $(
            #[tokio::test]
            async fn $test() -> anyhow::Result<()> {
                crate::$module::$test($backend).await
            }
        )*
    };
}

/// All tests on one kind of store.
macro_rules! on {
    ($name:ident, $backend:expr) => {
        mod $name {
            use super::Backend;

            tests! { $backend;
                agreement::callers_of_three_processes_have_one_effect_and_one_answer,
                agreement::two_thousand_keys_have_one_effect_each,
                answers::a_kill_of_an_operator_leaves_the_answer_or_none,
                answers::a_kill_while_an_answer_is_on_its_way_leaves_one_answer,
                answers::an_answer_that_is_based_on_an_old_look_is_refused,
                answers::an_owner_that_lives_is_not_answered_for,
                ends::a_body_that_ends_without_a_result_is_given_up_at_once_and_its_policy_decides,
                expiry::a_retry_after_the_expiry_is_refused_and_never_runs,
                kills::under_hold_a_kill_leaves_what_the_table_says,
                kills::under_retry_a_kill_leaves_what_the_table_says,
                questions::under_verify_a_kill_of_owner_and_asker_leaves_one_effect,
                questions::under_verify_nobody_asks_while_the_owner_lives,
                steps::a_kill_at_each_point_of_each_step_leaves_what_the_table_says,
                steps::a_kill_while_a_checkpoint_is_on_its_way_leaves_the_step_done_or_not,
                steps::a_call_that_dies_again_and_again_gets_on_each_time,
                stops::a_commit_on_its_way_when_an_operator_says_that_nothing_happened_is_the_result_or_is_lost,
                stops::a_late_owner_gets_the_result_of_the_call_that_ran_after_an_operators_answer,
                stops::a_late_owner_neither_overwrites_an_operators_answer_nor_returns_another,
                stops::under_resume_a_late_owner_runs_no_further_step,
                stops::under_verify_a_late_owner_gets_the_result_of_who_asked,
                stops::under_hold_an_owner_that_was_in_doubt_settles_its_own_record,
                stops::under_retry_the_commit_of_an_owner_that_was_taken_over_is_refused,
            }
        }
    };
}

on!(redis, Backend::Redis);
on!(postgres, Backend::Postgres);
on!(mariadb, Backend::MariaDb);
on!(sqlite, Backend::Sqlite);
