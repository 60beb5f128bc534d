//! The tests that `docs/guarantees.md` names exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What stands between backticks and is the path of a test: words and `::`.
fn named_tests(text: &str) -> BTreeSet<&str> {
    let is_path = |quoted: &&str| {
        quoted.contains("::")
            && quoted.split("::").all(|part| part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
    };
    text.split('`').skip(1).step_by(2).filter(is_path).collect()
}

/// The file of a test that is called `binary::module::test` or `binary::test`.
fn file_of(tests: &Path, name: &str) -> Option<(PathBuf, String)> {
    let parts: Vec<_> = name.split("::").collect();
    let (test, modules) = parts.split_last()?;
    let file = match modules {
        [] => return None,
        modules => modules.iter().fold(tests.to_path_buf(), |path, module| path.join(module)).with_extension("rs"),
    };
    Some((file, format!("fn {test}(")))
}

#[test]
fn every_test_that_the_guarantees_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/guarantees.md")).expect("the page can be read");
    let names = named_tests(&text);
    assert!(names.len() > 40, "only {} tests are named", names.len());
    let is_missing = |name: &&&str| {
        file_of(&root.join("tests"), name)
            .and_then(|(file, function)| Some(fs::read_to_string(file).ok()?.contains(&function)))
            .is_none_or(|exists| !exists)
    };
    let missing: Vec<_> = names.iter().filter(is_missing).collect();
    assert!(missing.is_empty(), "no such tests: {missing:#?}");
}

#[test]
fn a_name_without_its_test_is_noticed() {
    assert_eq!(
        named_tests("a `b::c` and `d`, `E::f()` and `g::h::i`").into_iter().collect::<Vec<_>>(),
        ["b::c", "g::h::i"]
    );
    let (file, function) = file_of(Path::new("tests"), "engine::crash::x").expect("a path");
    assert_eq!((file, function), (PathBuf::from("tests/engine/crash.rs"), String::from("fn x(")));
}
