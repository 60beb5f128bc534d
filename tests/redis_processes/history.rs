//! Whether what happened was allowed: the answers of all callers against the effects and the records.

use std::collections::BTreeMap;

use idempotency::store::{CrashPolicy, Record};
use idempotency::{ErrorKind, State};

use crate::worker::{Answer, Receipt, kind};

/// All that is known of one key when everything is over.
pub struct History<'a> {
    pub answers: Vec<&'a Answer>,
    /// What the effect log has for it.
    pub effects: Vec<Receipt>,
    pub record: Option<Record>,
}

/// The effects of each key, from the lines of the log.
pub fn effects(lines: &[String]) -> BTreeMap<String, Vec<Receipt>> {
    let mut effects = BTreeMap::<_, Vec<_>>::new();
    for line in lines {
        let words: Vec<_> = line.split(' ').collect();
        let [key, effect, payload] = words[..] else { panic!("no effect: {line}") };
        let receipt = Receipt { effect: effect.into(), payload: payload.parse().expect("a payload") };
        effects.entry(key.to_owned()).or_default().push(receipt);
    }
    effects
}

impl History<'_> {
    /// The invariants that are broken, by their names in the specification.
    pub fn violations(&self) -> Vec<&'static str> {
        let receipts: Vec<_> = self.answers.iter().filter_map(|answer| answer.result.as_ref().ok()).collect();
        let takeovers = self.record.as_ref().map_or(0, |record| record.attempts.saturating_sub(1) as usize);
        let holds = self.record.as_ref().is_some_and(|record| record.policy == CrashPolicy::Hold);
        let stored = self.record.as_ref().filter(|record| record.state == State::Completed);
        let stored = stored.map(|record| serde_json::from_slice::<Receipt>(&record.body).ok());
        let mismatch = kind(ErrorKind::Mismatch);
        let refused = |answer: &&&Answer| answer.result.as_ref().is_err_and(|error| *error == mismatch);

        let broken = [
            ("S1: two callers got different results", receipts.windows(2).any(|pair| pair[0] != pair[1])),
            (
                "S2: a caller got another result than the one that is stored",
                !receipts.is_empty() && stored.as_ref().is_none_or(|stored| stored.as_ref() != Some(receipts[0])),
            ),
            ("S3: more effects than owners", self.effects.len() > 1 + takeovers),
            ("S5: two effects under hold", holds && self.effects.len() > 1),
            ("S8: a result without its effect", receipts.iter().any(|receipt| !self.effects.contains(receipt))),
            (
                "S9: a call with other content was answered or run",
                self.answers.iter().any(|a| a.result.as_ref().is_ok_and(|receipt| receipt.payload != a.payload))
                    || self.effects.windows(2).any(|pair| pair[0].payload != pair[1].payload),
            ),
            (
                "S9: a call with the same content was refused",
                self.answers.iter().filter(refused).any(|a| self.effects.iter().any(|e| e.payload == a.payload)),
            ),
        ];
        broken.into_iter().filter_map(|(name, broken)| broken.then_some(name)).collect()
    }
}

mod tests {
    use idempotency::State;
    use idempotency::key::KeyHash;
    use idempotency::store::{CrashPolicy, Record, Token};

    use super::History;
    use crate::worker::{Answer, Receipt};

    fn receipt(effect: &str, payload: u32) -> Receipt {
        Receipt { effect: effect.into(), payload }
    }

    fn answer(payload: u32, result: Result<Receipt, &str>) -> Answer {
        Answer { key: "k".into(), payload, result: result.map_err(Into::into) }
    }

    fn record(policy: CrashPolicy, attempts: u32, result: &Receipt) -> Record {
        let mut record = Record::new(KeyHash::from_bytes([1; 32]), Token::from_bits(1), "o".into());
        record.state = State::Completed;
        record.policy = policy;
        record.attempts = attempts;
        record.body = serde_json::to_vec(result).unwrap().into();
        record
    }

    #[test]
    fn each_violation_is_found_and_what_is_allowed_is_none() {
        let (a, b) = (receipt("a", 1), receipt("b", 1));
        let ok = |receipt: &Receipt| answer(receipt.payload, Ok(receipt.clone()));
        let held = record(CrashPolicy::Hold, 1, &a);
        let retried = record(CrashPolicy::Retry, 2, &a);
        let cases = [
            (vec![ok(&a), ok(&a), answer(2, Err("Mismatch"))], vec![&a], &held, ""),
            (vec![ok(&a)], vec![&b, &a], &retried, ""),
            (vec![ok(&a), ok(&b)], vec![&a, &b], &retried, "S1"),
            (vec![ok(&b)], vec![&a, &b], &retried, "S2"),
            (vec![ok(&a)], vec![&a, &b, &b], &retried, "S3"),
            (vec![], vec![&a, &b], &record(CrashPolicy::Hold, 2, &a), "S5"),
            (vec![ok(&a)], vec![], &held, "S8"),
            (vec![answer(2, Ok(a.clone()))], vec![&a], &held, "S9"),
            (vec![answer(1, Err("Mismatch"))], vec![&a], &held, "S9"),
        ];
        for (answers, effects, record, expected) in cases {
            let history = History {
                answers: answers.iter().collect(),
                effects: effects.into_iter().cloned().collect(),
                record: Some(record.clone()),
            };
            let found: Vec<_> = history.violations().iter().map(|violation| &violation[..2]).collect();
            assert_eq!(found.join(" "), expected, "{answers:?}");
        }
    }
}
