//! The mistakes.

/// A mistake of a store, as people make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    None,
    /// None either: only one of fifty purges finds something to remove.
    PurgesRarely,
    /// Each handle has a lock of its own around reading and writing.
    LockOfOneHandle,
    /// Nothing is locked.
    NothingAtomic,
    /// Claims are atomic, and what owners write is not.
    ClaimsAtomicOnly,
    /// What owners write is atomic, and claims are not.
    WritesAtomicOnly,
    /// What operators do is not atomic.
    OperatorsNotAtomic,
    /// The state is written first, and the body after it.
    StateBeforeBody,
    /// The body is written first, and the state after it.
    BodyBeforeState,
    /// Each handle answers from what it has read before.
    ReadsRemembered,
    /// Each handle has the results at hand that it has read before.
    LocalResultsRemembered,
    /// Reading is done from a copy that is one write behind.
    ReadsOneWriteBehind,
    /// Tokens are 64 bits.
    TokensOf64Bits,
    /// Tokens are the upper 64 bits.
    TokensOfUpperHalf,
    /// Tokens are 8 bits.
    TokensOf8Bits,
    /// Fingerprints are 64 bits.
    FingerprintsOf64Bits,
    /// Fingerprints have no version.
    FingerprintsWithoutVersion,
    /// Keys are 128 bits.
    KeysOf128Bits,
    /// Times are milliseconds in 32 bits, and the longest is the longest.
    TimesSaturate,
    /// Times are milliseconds in 32 bits, and begin again.
    TimesWrap,
    /// Times are milliseconds in 31 bits, and the longest is the longest.
    TimesOf31BitsSaturate,
    /// Times are whole seconds, rounded down.
    TimesOfWholeSeconds,
    /// More than twenty records are too many.
    TwentyRecords,
    /// More than five thousand records are too many.
    FiveThousandRecords,
    /// The first 25 of many renewals are made, and all are acknowledged.
    RenewalsOf25,
    /// A renewal that is refused refuses those after it.
    RenewalsStopAtRefusal,
    /// Bodies end at 2 MiB.
    BodiesOf2Mebibytes,
    /// Bodies end at 64 KiB.
    BodiesOf64Kibibytes,
    /// Bodies are text: what is no UTF-8 is replaced.
    BodiesOfText,
    /// Bodies end at a zero.
    BodiesEndAtZero,
    /// Each handle counts fences by itself.
    FencesOfOneHandle,
    /// A record that is gone is forgotten with its fence.
    FencesBeginAgain,
    /// A record that is gone is forgotten with its fence, and the next one begins at the time.
    FencesOfTheClock,
    /// Names end after 64 characters.
    NamesOf64Characters,
    /// Names are ASCII.
    NamesOfAscii,
    /// The trace context is dropped.
    TracesDropped,
    /// The holder is dropped.
    HoldersDropped,
    /// Holders end after 32 characters.
    HoldersOf32Characters,
    /// A takeover leaves the holder of the first claim.
    HoldersOfTheFirstClaim,
    /// A takeover writes its namespace.
    NamespacesOfTheTaker,
    /// Attempts are 8 bits.
    AttemptsOf8Bits,
    /// Checkpoints are counted in 8 bits.
    CheckpointsOf8Bits,
    /// Schema versions are 16 bits.
    SchemasOf16Bits,
    /// Waiters are woken by their own handle alone.
    WakesOneHandle,
    /// A release does not look at the owner.
    ReleasesUnguarded,
    /// A renewal does not look at the owner.
    RenewalsUnguarded,
    /// A commit does not look at the owner.
    CommitsUnguarded,
    /// A commit is taken as often as it comes.
    CommitsRepeat,
    /// A checkpoint does not look at its number.
    CheckpointsUnordered,
    /// A checkpoint cannot say that nothing had begun.
    CheckpointsSayNothing,
    /// A claim that is sent again is held by itself.
    ClaimsNotRepeatable,
    /// A takeover does not look at the policy.
    HoldForgotten,
    /// A takeover does not look at the fingerprint.
    FingerprintsForgotten,
    /// A claim under `hold` parks what another request has left.
    HoldOfAnotherRequest,
    /// What has expired is there until it is purged.
    ExpiryNeedsPurge,
    /// A purge takes what is old, whether or not it has expired.
    PurgesTakeUnfinished,
    /// A purge takes nothing.
    PurgesTakeNothing,
    /// A purge takes all that has expired, whatever its limit.
    PurgesWithoutLimit,
    /// A claim that asks for the expiry of a result is not told it.
    ExpiriesUntold,
    /// A claim that asks for the expiry of a result is told that of its tombstone.
    ExpiriesOfTombstones,
    /// A claim that asks for the expiry of a result is told what the claim before had.
    ExpiriesOfTheLinger,
    /// A census counts what has expired.
    CensusesOfWhatIsStored,
    /// A census of doubts leaves out those that no caller has noticed.
    CensusesOverlookOrphans,
    /// A census does not tell names apart that differ in spaces.
    CensusesOfTrimmedNames,
    /// A census does not tell namespaces apart.
    CensusesOfOneNamespace,
    /// A census does not know how old a record is.
    CensusesOfNow,
    /// A census does not know how large a body is.
    CensusesWithoutSizes,
    /// A census does not look at its time.
    CensusesWithoutEnd,
    /// A census looks at its time before it begins, and not again.
    CensusesLookAtTheirTimeOnce,
    /// A census whose time is over is as good as any.
    CensusesStopUnnoticed,
    /// A census ends after a thousand records.
    CensusesOfOneStep,
    /// A list ends after the first page.
    ScansEnd,
    /// A list of doubts leaves out those that no caller has noticed.
    ScansOverlookOrphans,
    /// A list does not look at the namespace.
    ScansOfEveryNamespace,
    /// A list does not look at the digits that are searched for.
    ScansOfEveryKey,
    /// A list ends at a page on which nothing is listed.
    ScansEndAtEmptyPages,
    /// A page begins after what was listed before, and not after what was examined.
    ScansStandStill,
    /// A list goes on at the cursor of any store.
    CursorsOfAnyStore,
    /// A list leaves out what has expired, with the tombstone that is to follow.
    ScansHideTombstones,
    /// An operator's answer does not look at the owner.
    AnswersUnguarded,
    /// A removal does not look at whether the owner runs.
    RemovalsOfRunning,
}

impl Flaw {
    /// All of them, each with the case that is about it.
    pub const ALL: [(Self, &'static str); 79] = [
        (Self::LockOfOneHandle, "requests_that_meet_on_a_running_record_have_an_order"),
        (Self::NothingAtomic, "requests_that_meet_where_no_record_is_have_an_order"),
        (Self::ClaimsAtomicOnly, "requests_that_meet_on_a_doubt_have_an_order"),
        (Self::WritesAtomicOnly, "requests_that_meet_on_an_abandoned_record_have_an_order"),
        (Self::OperatorsNotAtomic, "requests_that_meet_on_a_result_have_an_order"),
        (Self::StateBeforeBody, "a_reader_sees_no_half_of_a_write"),
        (Self::BodyBeforeState, "a_reader_sees_no_half_of_a_write"),
        (Self::ReadsRemembered, "what_one_handle_wrote_the_other_sees"),
        (Self::LocalResultsRemembered, "a_local_result_is_that_of_the_record"),
        (Self::ReadsOneWriteBehind, "what_one_handle_wrote_the_other_sees"),
        (Self::TokensOf64Bits, "an_owner_is_known_by_its_whole_token"),
        (Self::TokensOfUpperHalf, "an_owner_is_known_by_its_whole_token"),
        (Self::TokensOf8Bits, "an_owner_is_known_by_its_whole_token"),
        (Self::FingerprintsOf64Bits, "a_request_is_known_by_its_whole_fingerprint"),
        (Self::FingerprintsWithoutVersion, "a_request_is_known_by_its_whole_fingerprint"),
        (Self::KeysOf128Bits, "a_record_is_known_by_its_whole_key"),
        (Self::TimesSaturate, "days_and_years_are_kept_as_they_are"),
        (Self::TimesWrap, "days_and_years_are_kept_as_they_are"),
        (Self::TimesOf31BitsSaturate, "days_and_years_are_kept_as_they_are"),
        (Self::TimesOfWholeSeconds, "parts_of_a_second_are_kept"),
        (Self::TwentyRecords, "ten_thousand_records_are_kept"),
        (Self::FiveThousandRecords, "ten_thousand_records_are_kept"),
        (Self::RenewalsOf25, "a_thousand_leases_are_renewed_at_once"),
        (Self::RenewalsStopAtRefusal, "a_thousand_leases_are_renewed_at_once"),
        (Self::BodiesOf2Mebibytes, "bodies_of_eight_mebibytes_are_kept"),
        (Self::BodiesOf64Kibibytes, "bodies_of_eight_mebibytes_are_kept"),
        (Self::BodiesOfText, "bodies_are_opaque"),
        (Self::BodiesEndAtZero, "bodies_are_opaque"),
        (Self::FencesOfOneHandle, "fences_grow_over_handles"),
        (Self::FencesBeginAgain, "fences_grow_over_handles"),
        (Self::FencesOfTheClock, "fences_grow_over_handles"),
        (Self::NamesOf64Characters, "numbers_and_names_are_kept_as_they_are"),
        (Self::NamesOfAscii, "numbers_and_names_are_kept_as_they_are"),
        (Self::TracesDropped, "a_body_of_any_size_leaves_what_the_claim_said"),
        (Self::HoldersDropped, "a_claim_is_kept_with_its_origin"),
        (Self::HoldersOf32Characters, "a_claim_is_kept_with_its_origin"),
        (Self::HoldersOfTheFirstClaim, "a_takeover_replaces_holder_and_trace"),
        (Self::NamespacesOfTheTaker, "a_takeover_replaces_holder_and_trace"),
        (Self::AttemptsOf8Bits, "numbers_and_names_are_kept_as_they_are"),
        (Self::CheckpointsOf8Bits, "numbers_and_names_are_kept_as_they_are"),
        (Self::SchemasOf16Bits, "numbers_and_names_are_kept_as_they_are"),
        (Self::WakesOneHandle, "a_watch_is_woken_by_another_handle"),
        (Self::ReleasesUnguarded, "a_stranger_writes_nothing"),
        (Self::RenewalsUnguarded, "a_stranger_writes_nothing"),
        (Self::CommitsUnguarded, "a_stranger_writes_nothing"),
        (Self::CommitsRepeat, "a_result_sent_twice_is_stored_once"),
        (Self::CheckpointsUnordered, "checkpoints_are_accepted_in_order"),
        (Self::CheckpointsSayNothing, "a_checkpoint_can_say_that_nothing_had_begun"),
        (Self::ClaimsNotRepeatable, "a_repeated_claim_is_granted_again"),
        (Self::HoldForgotten, "the_stricter_policy_decides"),
        (Self::FingerprintsForgotten, "a_contradicting_fingerprint_takes_nothing_over"),
        (Self::HoldOfAnotherRequest, "a_contradicting_fingerprint_takes_nothing_over"),
        (Self::ExpiryNeedsPurge, "an_expired_result_is_absent"),
        (Self::PurgesTakeUnfinished, "a_purge_takes_only_what_has_expired"),
        (Self::PurgesTakeNothing, "a_purge_removes_what_has_expired_up_to_its_limit"),
        (Self::PurgesWithoutLimit, "a_purge_removes_what_has_expired_up_to_its_limit"),
        (Self::ExpiriesUntold, "a_result_is_returned_with_its_expiry_if_asked"),
        (Self::ExpiriesOfTombstones, "a_result_is_returned_with_its_expiry_if_asked"),
        (Self::ExpiriesOfTheLinger, "a_result_is_returned_with_its_expiry_if_asked"),
        (Self::CensusesOfWhatIsStored, "a_census_leaves_out_what_has_expired"),
        (Self::CensusesOverlookOrphans, "a_census_knows_what_is_in_doubt"),
        (Self::CensusesOfTrimmedNames, "a_census_counts_by_operation_and_state"),
        (Self::CensusesOfOneNamespace, "a_census_counts_by_operation_and_state"),
        (Self::CensusesOfNow, "a_census_knows_what_is_in_doubt"),
        (Self::CensusesWithoutSizes, "a_census_adds_up_the_sizes_of_bodies"),
        (Self::CensusesWithoutEnd, "a_census_stops_at_its_budget"),
        (Self::CensusesLookAtTheirTimeOnce, "ten_thousand_records_are_kept"),
        (Self::CensusesStopUnnoticed, "a_census_stops_at_its_budget"),
        (Self::CensusesOfOneStep, "ten_thousand_records_are_kept"),
        (Self::ScansEnd, "a_scan_lists_every_record_once"),
        (Self::ScansOverlookOrphans, "a_scan_lists_what_somebody_has_to_look_at"),
        (Self::ScansOfEveryNamespace, "a_scan_lists_records_of_a_namespace_and_an_age"),
        (Self::ScansOfEveryKey, "a_scan_lists_keys_with_the_same_digits"),
        (Self::ScansEndAtEmptyPages, "ten_thousand_records_are_kept"),
        (Self::ScansStandStill, "ten_thousand_records_are_kept"),
        (Self::CursorsOfAnyStore, "a_scan_goes_on_at_cursors_of_its_own"),
        (Self::ScansHideTombstones, "a_scan_lists_the_tombstones_of_expired_records"),
        (Self::AnswersUnguarded, "an_answer_to_another_owner_is_a_conflict"),
        (Self::RemovalsOfRunning, "a_running_record_is_not_removed"),
    ];
}
