//! The SQL stores on servers to which the connections break: at every message of a call, in
//! renewals, while the server stops or restarts. A call answers or says that the store is
//! unavailable, and its effect happens once.
//!
//! Effects are lines in a file outside of the code under test. Time is real, and the stores do not
//! wait long.

#![cfg(any(feature = "mysql", feature = "postgres"))]

mod answers;
mod backend;
mod dropped;
mod late;
#[cfg(feature = "mysql")]
mod mariadb;
mod messages;
mod outages;
#[cfg(feature = "postgres")]
mod postgres;
mod renewals;
mod world;

macro_rules! tests {
    ($backend:ty; $($module:ident::$test:ident,)*) => {
        $(
            #[tokio::test]
            async fn $test() -> anyhow::Result<()> {
                crate::$module::$test::<$backend>().await
            }
        )*
    };
}

/// All tests on one kind of server.
macro_rules! on {
    ($name:ident, $backend:ident) => {
        mod $name {
            use idempotency_test_support::server::$backend;

            tests! { $backend;
                answers::a_claim_whose_answer_is_lost_is_recognised_by_its_token,
                answers::a_claim_whose_answers_are_all_lost_is_released_when_the_store_is_back,
                answers::a_commit_that_never_arrives_is_sent_again,
                answers::a_commit_whose_answer_is_lost_is_found_applied,
                dropped::a_call_dropped_while_it_claims_leaves_nothing_behind,
                late::a_claim_transmitted_twice_that_arrives_late_is_released_again,
                messages::a_connection_closed_at_any_message_of_a_call_has_one_effect,
                messages::a_connection_closed_at_any_message_of_a_call_with_a_large_result_has_one_effect,
                messages::a_connection_closed_at_any_message_of_a_call_with_a_very_large_result_has_one_effect,
                messages::a_connection_reset_at_any_message_of_a_call_has_one_effect,
                messages::a_connection_silent_from_any_message_of_a_call_has_one_effect,
                messages::a_replay_cut_at_any_boundary_gives_the_whole_result_or_none,
                outages::a_call_that_outlasts_a_stop_of_the_server_has_one_effect,
                outages::a_commit_under_way_when_the_server_stops_is_stored_when_it_goes_on,
                outages::a_connection_that_falls_silent_when_it_is_given_back_is_replaced,
                outages::a_connection_that_owes_an_answer_is_replaced_at_once,
                outages::a_connection_that_is_reset_is_made_anew_within_the_call,
                outages::a_result_is_stored_after_the_server_was_restarted_since_the_claim,
                outages::a_server_that_refuses_connections_runs_no_body_and_is_found_again,
                outages::a_server_that_stops_runs_no_body_and_owes_no_answer_when_it_goes_on,
                renewals::a_renewal_cut_at_any_boundary_does_not_lose_the_lease,
            }
        }
    };
}

#[cfg(feature = "postgres")]
on!(on_postgres, Postgres);
#[cfg(feature = "mysql")]
on!(on_mariadb, MariaDb);
