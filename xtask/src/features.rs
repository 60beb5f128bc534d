//! The feature sets that are checked one by one, read from the manifests so that a new feature is
//! never forgotten.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::Value;

use crate::command::Command;

/// The packages whose features users choose.
const PACKAGES: [&str; 2] = ["idempotency", "idempotent-runtime"];

/// Returns arguments for cargo: each package without features, with each feature alone, and with
/// the default ones.
pub(crate) fn feature_sets() -> anyhow::Result<Vec<String>> {
    from_metadata(&metadata()?)
}

/// Returns the features of the facade except its default ones.
pub(crate) fn features_of_facade() -> anyhow::Result<Vec<String>> {
    let metadata = metadata()?;
    let [facade, _] = PACKAGES;
    Ok(features(&metadata, facade)?.map(ToOwned::to_owned).collect())
}

/// Returns the folder in which cargo builds.
pub(crate) fn target_directory() -> anyhow::Result<PathBuf> {
    let metadata = metadata()?;
    let folder = metadata["target_directory"].as_str();
    folder.map(PathBuf::from).context("`cargo metadata` names no target directory")
}

fn metadata() -> anyhow::Result<Value> {
    let output = Command::cargo("metadata --no-deps --format-version 1").output()?;
    serde_json::from_slice(&output).context("`cargo metadata` printed something else than JSON")
}

fn features<'a>(
    metadata: &'a Value,
    package: &str,
) -> anyhow::Result<impl Iterator<Item = &'a str> + use<'a>> {
    let packages = metadata["packages"].as_array().context("`cargo metadata` lists no packages")?;
    let features = packages
        .iter()
        .find(|listed| listed["name"] == package)
        .and_then(|listed| listed["features"].as_object())
        .with_context(|| format!("`cargo metadata` does not list the features of `{package}`"))?;
    // Those that begin with two underscores are private parts of others.
    let is_for_users = |feature: &&str| *feature != "default" && !feature.starts_with("__");
    Ok(features.keys().map(String::as_str).filter(is_for_users))
}

fn from_metadata(metadata: &Value) -> anyhow::Result<Vec<String>> {
    let mut sets = Vec::new();
    for name in PACKAGES {
        sets.push(format!("--package {name} --no-default-features"));
        for feature in features(metadata, name)? {
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
            {"name": "idempotent-runtime", "features": {"__external": [], "memory": []}},
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
