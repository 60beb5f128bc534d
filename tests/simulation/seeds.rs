//! Many seeds, and the ones that have shown something.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use idempotency_test_support::history::Rule;

use crate::happened::EVENTS;
use crate::inbox;
use crate::mutant::Mutant;
use crate::run::{Run, run};
use crate::transactions;

const SEEDS: u64 = 20_000;
const LONG_SEEDS: u64 = 1_000_000;

/// A seed that has shown a mistake.
struct Kept {
    seed: u64,
    showed: &'static str,
    /// The mistake, where one can be made on purpose.
    mutant: Option<(Mutant, Rule)>,
}

/// They stay.
const KEPT: &[Kept] = &[
    Kept {
        seed: 107,
        showed: "a repeated commit arrived when its retention was over, and wrote the record anew",
        mutant: None,
    },
    Kept {
        seed: 112,
        showed: "the same where a tombstone had refused late retries, and was gone as well",
        mutant: None,
    },
    Kept {
        seed: 4_749,
        showed: "a claim arrived again after its owner had left the record in doubt, and owned it once more, for nobody",
        mutant: Some((Mutant::DoubtsTakenBack, Rule::DeadOwnersMakeRoom)),
    },
    Kept {
        seed: 794_752,
        showed: "the record of a slow owner was removed, and it returned the result of another request for the key",
        mutant: None,
    },
    Kept { seed: 925_173, showed: "the same after a commit whose answer was lost", mutant: None },
    Kept {
        seed: 37_293,
        showed: "a claim and its commit arrived again when their retention was over, which is no mistake of a store's",
        mutant: None,
    },
];

fn named_seed() -> Option<u64> {
    std::env::var("IDEMPOTENCY_SEED").ok()?.parse().ok()
}

/// The run of `seed` with calls alone, the one with transactions, and the one with messages.
fn all(seed: u64) -> [Run; 3] {
    [run(seed, None), transactions::run(seed), inbox::run(seed)]
}

/// What to say about a seed that failed; `None` if it did not.
fn failure(seed: u64, run: &Run) -> Option<String> {
    let broken: Vec<_> = run.broken.iter().map(|violation| format!("  {violation}")).collect();
    (!broken.is_empty()).then(|| {
        let command = format!(
            "IDEMPOTENCY_SEED={seed} cargo test --features testing --test simulation -- --nocapture"
        );
        format!("seed {seed}:\n{}\n  to see it again: {command}", broken.join("\n"))
    })
}

#[test]
fn no_seed_breaks_a_rule() {
    if let Some(seed) = named_seed() {
        for run in all(seed) {
            run.entries.iter().for_each(|entry| println!("{entry:?}"));
            let failure = failure(seed, &run);
            assert!(failure.is_none(), "{}", failure.unwrap_or_default());
        }
        return;
    }
    let count = if std::env::var_os("IDEMPOTENCY_LONG").is_some() { LONG_SEEDS } else { SEEDS };
    let (next, failures) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count {
                        return;
                    }
                    let found = all(seed).iter().find_map(|run| failure(seed, run));
                    // At once: a long run may be stopped.
                    if let Some(found) = &found {
                        eprintln!("{found}");
                    }
                    failures.lock().expect("nobody panics with it").extend(found);
                }
            });
        }
    });
    let failures = failures.into_inner().expect("nobody panics with it");
    let shown: Vec<_> = failures.iter().take(20).cloned().collect();
    assert!(
        failures.is_empty(),
        "{} of {count} seeds break rules:\n{}",
        failures.len(),
        shown.join("\n")
    );
}

#[test]
fn kept_seeds_show_their_mistake_no_more() {
    for Kept { seed, showed, mutant } in KEPT {
        let failure = failure(*seed, &run(*seed, None));
        assert!(failure.is_none(), "{showed}, in {}", failure.unwrap_or_default());
        let Some((mutant, rule)) = mutant else { continue };
        let broken = run(*seed, Some(*mutant)).broken;
        assert!(
            broken.iter().any(|violation| violation.rule == *rule),
            "{mutant:?} is not seen in {seed}: {broken:?}"
        );
    }
}

#[test]
fn a_seed_repeats_its_run_to_the_millisecond() {
    for seed in 0..200 {
        for (first, second) in all(seed).iter().zip(all(seed)) {
            let differs =
                first.entries.iter().zip(&second.entries).position(|(one, other)| one != other);
            if let Some(at) = differs {
                panic!(
                    "seed {seed} differs at {at}:\n{:?}\n{:?}",
                    first.entries[at], second.entries[at]
                );
            }
            assert_eq!(first.entries.len(), second.entries.len(), "seed {seed}");
        }
    }
}

/// A simulation in which nothing goes wrong proves nothing.
#[test]
fn everything_happens_in_some_seed() {
    let mut missing = EVENTS.to_vec();
    for seed in 0..2_000 {
        let run = run(seed, None);
        missing.retain(|(_, is_it)| !run.entries.iter().any(is_it));
        if missing.is_empty() {
            return;
        }
    }
    let names: Vec<_> = missing.iter().map(|(name, _)| name).collect();
    panic!("these have not happened: {names:?}");
}
