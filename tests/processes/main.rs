//! Real processes on real stores: many at once, killed at every point of a call, and stopped beyond their lease.

mod agreement;
mod backend;
mod kills;
mod scene;
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
                kills::under_hold_a_kill_leaves_what_the_table_says,
                kills::under_retry_a_kill_leaves_what_the_table_says,
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
