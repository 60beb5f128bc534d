//! Each rule has a mistake that it notices.

use idempotency_test_support::history::Rule;

use crate::mutant::Mutant;
use crate::run::run;

/// Looks for a seed in which `mutant` breaks `rule`.
fn is_noticed(mutant: Mutant, rule: Rule) {
    // Most take some tens; a claim that only looked, and that no release comes to, takes thousands.
    let seed = (0..20_000).find(|seed| {
        run(*seed, Some(mutant)).broken.iter().any(|violation| violation.rule == rule)
    });
    let seed = seed.unwrap_or_else(|| panic!("{mutant:?} does not break {rule}"));
    println!("{mutant:?} breaks {rule} in seed {seed}");
}

macro_rules! noticed {
    ($($test:ident: $mutant:ident breaks $rule:ident;)*) => {
        $(
            #[test]
            fn $test() {
                is_noticed(Mutant::$mutant, Rule::$rule);
            }
        )*
    };
}

noticed! {
    s1_notices_a_result_that_some_callers_get: ReplaysAltered breaks SameValue;
    s2_notices_an_answer_that_is_overwritten: AnswersOverwritten breaks OneResult;
    s3_notices_a_call_that_runs_again_after_it_has_ended: CompletedCallsGranted breaks EffectsWithinTakeovers;
    s3_notices_a_release_while_a_step_runs_in_a_task: RunningStepsForgotten breaks EffectsWithinTakeovers;
    s4_notices_fences_that_do_not_grow: FencesStandStill breaks FencesGrow;
    s5_notices_a_call_under_hold_that_is_taken_over: HoldForgotten breaks OneEffectUnderHold;
    s5_notices_a_question_that_is_asked_while_the_owner_lives: AskedWhileOwnerLives breaks OneEffectUnderHold;
    s7_notices_a_lease_that_is_shorter_than_its_owner_believes: LeasesHalved breaks OneOwner;
    s5_notices_an_owner_whose_clock_stops_while_its_machine_is_suspended: ClocksStop breaks OneEffectUnderHold;
    s7_notices_an_owner_whose_clock_stops_while_its_machine_is_suspended: ClocksStop breaks OneOwner;
    s8_notices_a_commit_on_the_record_of_another: CommitsUnguarded breaks OwnRecordOnly;
    s8_notices_a_result_that_no_effect_had: ReplaysAltered breaks NoResultWithoutEffect;
    s9_notices_a_result_that_goes_to_another_request: FingerprintsForgotten breaks FingerprintsKeptApart;
    s10_notices_a_body_under_the_claim_of_another: AnswersMixedUp breaks AcknowledgedBeforeBody;
    s11_notices_a_body_after_a_claim_that_failed: GrantsInvented breaks FailClosed;
    s12_notices_a_takeover_that_does_not_look_at_the_window_before: TakeoversUnlooked breaks OneWindow;
    l1_notices_a_process_that_hangs: ProcessHangs breaks CallsReturn;
    l2_notices_a_dead_owner_that_is_kept_alive: DeadOwnersRenewed breaks DeadOwnersMakeRoom;
    l3_notices_waiters_that_see_an_old_record: WatchesStale breaks WaitersNotice;
    l4_notices_renewals_that_are_not_made: RenewalsForgotten breaks LivingOwnersStay;
    l5_notices_that_nobody_purges: PurgesLost breaks ExpiredAreRemoved;
}
