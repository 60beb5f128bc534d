//! The encoding of a call's steps as a checkpoint.
//!
//! JSON with a version of its own, so that an operator can read it:
//! `{"version":1,"steps":[{"name":"reserve","index":0,"outcome":{"finished":{"item":7}}}]}`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::identity::StepId;

const VERSION: u32 = 1;

/// The recorded state of a step.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Recorded {
    /// A step that runs at most once is about to run, or has.
    Started,
    /// It ended with this result.
    Finished(Box<RawValue>),
    /// It ended, and its result was larger than the limit.
    TooLarge,
    /// It ended, and its result could not be encoded.
    NotEncodable,
}

#[derive(Serialize)]
struct WriteOutcome<'a> {
    version: u32,
    steps: Vec<WrittenStep<'a>>,
}

#[derive(Serialize)]
struct WrittenStep<'a> {
    name: &'a str,
    index: u64,
    outcome: &'a Recorded,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read<'a> {
    #[expect(dead_code, reason = "it was looked at before")]
    version: u32,
    #[serde(borrow)]
    steps: Vec<ReadStep<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadStep<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    index: u64,
    outcome: Recorded,
}

/// Encodes steps. The same steps have the same bytes, because the map is sorted.
pub(super) fn encode(steps: &BTreeMap<&StepId, &Recorded>) -> Result<Bytes, serde_json::Error> {
    let steps =
        steps.iter().map(|(id, outcome)| WrittenStep { name: &id.name, index: id.index, outcome });
    serde_json::to_vec(&WriteOutcome { version: VERSION, steps: steps.collect() }).map(Bytes::from)
}

/// The reason why a checkpoint cannot be read.
#[derive(Debug)]
pub(super) enum Unreadable {
    Version(u32),
    Malformed(serde_json::Error),
    Twice(StepId),
}

/// Decodes the steps of a checkpoint. An empty one has none.
pub(super) fn decode(checkpoint: &[u8]) -> Result<BTreeMap<StepId, Recorded>, Unreadable> {
    let mut steps = BTreeMap::new();
    if checkpoint.is_empty() {
        return Ok(steps);
    }
    let Version { version } = serde_json::from_slice(checkpoint).map_err(Unreadable::Malformed)?;
    if version != VERSION {
        return Err(Unreadable::Version(version));
    }
    let read: Read<'_> = serde_json::from_slice(checkpoint).map_err(Unreadable::Malformed)?;
    for ReadStep { name, index, outcome } in read.steps {
        let id = StepId { name: name.into(), index };
        if steps.insert(id.clone(), outcome).is_some() {
            return Err(Unreadable::Twice(id));
        }
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::value::to_raw_value;

    use super::{Recorded, StepId, Unreadable, decode, encode};

    const GOLDEN: &[u8] = br#"{"version":1,"steps":[{"name":"charge","index":0,"outcome":"started"},{"name":"item","index":0,"outcome":{"finished":{"sku":"a \"b\"","count":2}}},{"name":"item","index":1,"outcome":"too_large"},{"name":"note","index":18446744073709551615,"outcome":"not_encodable"}]}"#;

    fn steps() -> BTreeMap<StepId, Recorded> {
        #[derive(serde::Serialize)]
        struct Item {
            sku: &'static str,
            count: u32,
        }
        let item = to_raw_value(&Item { sku: "a \"b\"", count: 2 }).unwrap();
        let id = |name: &str, index| StepId { name: name.into(), index };
        BTreeMap::from([
            (id("note", u64::MAX), Recorded::NotEncodable),
            (id("item", 1), Recorded::TooLarge),
            (id("item", 0), Recorded::Finished(item)),
            (id("charge", 0), Recorded::Started),
        ])
    }

    #[test]
    fn golden_bytes_of_a_released_format() {
        assert_eq!(encode(&steps().iter().collect()).unwrap(), GOLDEN);
        let read = decode(GOLDEN).unwrap();
        assert_eq!(format!("{read:?}"), format!("{:?}", steps()));
    }

    #[test]
    fn no_checkpoint_has_no_steps() {
        assert!(decode(b"").unwrap().is_empty());
    }

    #[test]
    fn what_another_version_wrote_is_not_guessed_at() {
        let later = br#"{"version":2,"steps":"elsewhere"}"#;
        assert!(matches!(decode(later), Err(Unreadable::Version(2))));
    }

    #[test]
    fn damaged_bytes_are_an_error() {
        for end in 1..GOLDEN.len() {
            assert!(matches!(decode(&GOLDEN[..end]), Err(Unreadable::Malformed(_))), "{end} bytes");
        }
        let unknown = br#"{"version":1,"steps":[],"more":1}"#;
        assert!(matches!(decode(unknown), Err(Unreadable::Malformed(_))));
        let twice = br#"{"version":1,"steps":[{"name":"a","index":3,"outcome":"started"},{"name":"a","index":3,"outcome":"started"}]}"#;
        assert!(matches!(decode(twice), Err(Unreadable::Twice(id)) if id.to_string() == "a 3"));
    }
}
