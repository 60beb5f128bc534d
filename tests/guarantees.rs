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

/// The file of a test that is called `binary::module::test` or `binary::test`, and the test's own name. Of each case of
/// the conformance suite every store makes a test.
fn file_of<'n>(root: &Path, name: &'n str) -> Option<(PathBuf, &'n str)> {
    let parts: Vec<_> = name.split("::").collect();
    let (test, modules) = parts.split_last()?;
    let folder = match modules {
        ["conformance", ..] => "idempotent-runtime/src/testing",
        [] => return None,
        _ => "tests",
    };
    let file = modules.iter().fold(root.join(folder), |path, module| path.join(module)).with_extension("rs");
    Some((file, test))
}

/// Whether there is such a function in the text of a file. One for several stores is generic.
fn defines(code: &str, test: &str) -> bool {
    ['(', '<'].iter().any(|next| code.contains(&format!("fn {test}{next}")))
}

#[test]
fn every_test_that_the_guarantees_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/guarantees.md")).expect("the page can be read");
    let names = named_tests(&text);
    assert!(names.len() > 100, "only {} tests are named", names.len());
    let is_missing = |name: &&&str| {
        file_of(root, name)
            .and_then(|(file, test)| Some(defines(&fs::read_to_string(file).ok()?, test)))
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
    let file_of = |name| file_of(Path::new(""), name).expect("a path");
    assert_eq!(file_of("engine::crash::x"), (PathBuf::from("tests/engine/crash.rs"), "x"));
    let suite = PathBuf::from("idempotent-runtime/src/testing/conformance/owners.rs");
    assert_eq!(file_of("conformance::owners::x"), (suite, "x"));
    assert!(defines("async fn x() {}", "x") && defines("async fn x<B>() {}", "x"));
    assert!(!defines("async fn xy() {}", "x") && !defines("async fn yx() {}", "x"));
}
