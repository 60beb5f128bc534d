//! What the compiler says about a mistake. The texts belong to the toolchain that the repository pins.

use std::fs;
use std::path::Path;

#[test]
fn mistakes_are_reported_once_where_they_are() {
    trybuild::TestCases::new().compile_fail("tests/ui/fail/*.rs");
}

/// A trait that a message names is one that its reader can look up.
#[test]
fn no_message_names_a_trait_by_a_private_path() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ui/fail");
    let mut traits = 0;
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be listed").path();
        if path.extension().is_none_or(|extension| extension != "stderr") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("it can be read");
        let names = |line: &&str| line.contains("the trait `") || line.contains("to implement `");
        for line in text.lines().filter(names) {
            assert!(!line.contains("__private"), "{}: {line}", path.display());
            traits += 1;
        }
    }
    assert!(traits > 20, "messages name traits in another way: {traits}");
}
