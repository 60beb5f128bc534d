//! The feature sets that are linted one by one, read from the manifests so that a new feature is never forgotten.

use anyhow::Context as _;
use serde_json::Value;

use crate::command::Command;

/// The packages whose features users choose.
const PACKAGES: [&str; 2] = ["idempotency", "idempotent-runtime"];

/// Arguments for cargo: each package without features, with each feature alone, and with the default ones.
pub(crate) fn feature_sets() -> anyhow::Result<Vec<String>> {
    let output = Command::cargo("metadata --no-deps --format-version 1").output()?;
    let metadata = serde_json::from_slice(&output).context("`cargo metadata` printed something else than JSON")?;
    from_metadata(&metadata)
}

fn from_metadata(metadata: &Value) -> anyhow::Result<Vec<String>> {
    let packages = metadata["packages"].as_array().context("`cargo metadata` lists no packages")?;
    let mut sets = Vec::new();
    for name in PACKAGES {
        let features = packages
            .iter()
            .find(|package| package["name"] == name)
            .and_then(|package| package["features"].as_object())
            .with_context(|| format!("`cargo metadata` does not list the features of `{name}`"))?;
        sets.push(format!("--package {name} --no-default-features"));
        for feature in features.keys().filter(|feature| *feature != "default") {
            sets.push(format!("--package {name} --no-default-features --features {feature}"));
        }
        sets.push(format!("--package {name}"));
    }
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::from_metadata;

    #[test]
    fn every_feature_is_alone_once() {
        let metadata = json!({"packages": [
            {"name": "idempotent-runtime", "features": {"memory": []}},
            {"name": "idempotency", "features": {"default": ["memory"], "memory": [], "testing": []}},
            {"name": "xtask", "features": {"other": []}},
        ]});
        let expected = [
            "--package idempotency --no-default-features",
            "--package idempotency --no-default-features --features memory",
            "--package idempotency --no-default-features --features testing",
            "--package idempotency",
            "--package idempotent-runtime --no-default-features",
            "--package idempotent-runtime --no-default-features --features memory",
            "--package idempotent-runtime",
        ];
        assert_eq!(from_metadata(&metadata).unwrap(), expected);
    }

    #[test]
    fn a_package_that_is_gone_is_named() {
        let error = from_metadata(&json!({"packages": []})).unwrap_err();
        assert!(error.to_string().contains("`idempotency`"), "{error}");
    }
}
