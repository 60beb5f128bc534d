//! What the compiler says about a mistake. The texts belong to the toolchain that the repository pins.

use std::fs;
use std::path::Path;

#[test]
fn mistakes_are_reported_once_where_they_are() {
    trybuild::TestCases::new().compile_fail("tests/ui/fail/*.rs");
}

/// Every word of a message is about what its reader wrote, or can look up. The compiler shows where
/// an item of a dependency is defined, by its file, and that alone is not a word about it.
#[test]
fn no_message_names_what_the_user_did_not_write() {
    const FOREIGN: [&str; 11] = [
        "`__",
        "::__",
        "idempotent_runtime",
        "idempotent_macros",
        "introduced by this call",
        "arguments to this function",
        "arguments to this method",
        "function defined here",
        "method defined here",
        "src/private.rs",
        "serde_core",
    ];
    let mut messages = 0;
    for (name, text) in messages_of_the_compiler() {
        for line in text.lines() {
            for words in FOREIGN {
                assert!(!line.contains(words), "{name}: {line}");
            }
        }
        messages += text.lines().filter(|line| line.starts_with("error")).count();
    }
    assert!(messages > 100, "messages begin in another way: {messages}");
}

/// Returns the expected messages, each with the name of its file.
fn messages_of_the_compiler() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ui/fail");
    let entries = fs::read_dir(folder).expect("the folder is there");
    entries
        .map(|entry| entry.expect("it can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "stderr"))
        .map(|path| {
            let text = fs::read_to_string(&path).expect("it can be read");
            (path.display().to_string(), text)
        })
        .collect()
}
