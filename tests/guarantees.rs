//! The tests that `docs/guarantees.md` names exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What stands between backticks and is the path of a test: words and `::`.
fn named_tests(text: &str) -> BTreeSet<&str> {
    let is_path = |quoted: &&str| {
        quoted.contains("::")
            && quoted
                .split("::")
                .all(|part| part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
    };
    text.split('`').skip(1).step_by(2).filter(is_path).collect()
}

/// Where a test is.
struct Place<'n> {
    /// The file that defines it.
    file: PathBuf,
    /// Files, each with the module that it declares, so that the one above is compiled.
    declared_in: Vec<(PathBuf, &'n str)>,
    /// The file with the list from which tests are made that are the same for several stores.
    list: PathBuf,
    module: &'n str,
    test: &'n str,
}

impl<'n> Place<'n> {
    /// Of a test that is called `binary::module::test`, where the module `main` is the binary's own
    /// file, or `conformance::module::test`: of each case of that suite every store makes a test.
    fn of(name: &'n str) -> Option<Self> {
        let parts: Vec<_> = name.split("::").collect();
        let (test, modules) = parts.split_last()?;
        let (binary, inner) = modules.split_first()?;
        let (folder, root) = match *binary {
            "conformance" => (Path::new("idempotent-runtime/src/testing"), "mod.rs"),
            // A package of its own.
            "values" => (Path::new("tests"), "values.rs"),
            "kafka" => (Path::new("idempotency-kafka/tests"), "main.rs"),
            "nats" => (Path::new("idempotency-nats/tests"), "main.rs"),
            "rabbitmq" => (Path::new("idempotency-rabbitmq/tests"), "main.rs"),
            "sqs" => (Path::new("idempotency-sqs/tests"), "main.rs"),
            _ => (Path::new("tests"), "main.rs"),
        };
        let root = folder.join(binary).join(root);
        let (mut folder, mut parent, mut declared_in) =
            (folder.join(binary), root.clone(), Vec::new());
        for module in inner.iter().filter(|module| **module != "main") {
            declared_in.push((parent, *module));
            folder = folder.join(module);
            parent = folder.join("mod.rs");
        }
        let file = if declared_in.is_empty() { root.clone() } else { folder.with_extension("rs") };
        Some(Self { file, declared_in, list: root, module: modules.last()?, test })
    }

    /// Whether there is such a test, and not just its name.
    fn has_test(&self, root: &Path) -> Option<bool> {
        let read = |file: &Path| fs::read_to_string(root.join(file)).ok();
        for (file, module) in &self.declared_in {
            if !read(file)?
                .lines()
                .any(|line| line.trim_start_matches("pub ") == format!("mod {module};"))
            {
                return Some(false);
            }
        }
        Some(match defined_as(&read(&self.file)?, self.test)? {
            Defined::Test => true,
            Defined::Function => is_listed(&read(&self.list)?, self.module, self.test),
        })
    }
}

#[derive(Debug, PartialEq)]
enum Defined {
    Test,
    /// For a list of tests to name.
    Function,
}

/// How the text of a file defines `test`, if it does. One for several stores may be generic.
fn defined_as(code: &str, test: &str) -> Option<Defined> {
    let is_definition = |line: &str| {
        let function = ["pub ", "async ", "fn "]
            .iter()
            .fold(line, |rest, word| rest.strip_prefix(word).unwrap_or(rest));
        function != line
            && function.strip_prefix(test).is_some_and(|rest| rest.starts_with(['(', '<']))
    };
    let lines: Vec<_> = code.lines().collect();
    let at = lines.iter().position(|line| is_definition(line))?;
    let attributes = lines[..at]
        .iter()
        .rev()
        .take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    let is_attribute = |line: &str| {
        ["#[test]", "#[tokio::test]", "#[tokio::test("].iter().any(|it| line.starts_with(it))
    };
    Some(if attributes.copied().any(is_attribute) { Defined::Test } else { Defined::Function })
}

/// Whether a list has `module::test,`, or that of the conformance suite the case of this name.
fn is_listed(list: &str, module: &str, test: &str) -> bool {
    let path = format!("{module}::{test}");
    list.lines().any(|line| [test, &path].contains(&line.trim().trim_end_matches([',', ';'])))
}

#[test]
fn every_test_that_the_guarantees_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/guarantees.md")).expect("the page can be read");
    let names = named_tests(&text);
    assert!(names.len() > 100, "only {} tests are named", names.len());
    let is_missing =
        |name: &&&str| Place::of(name).and_then(|place| place.has_test(root)) != Some(true);
    let missing: Vec<_> = names.iter().filter(is_missing).collect();
    assert!(missing.is_empty(), "no such tests: {missing:#?}");
}

#[test]
fn a_name_without_its_test_is_noticed() {
    assert_eq!(
        named_tests("a `b::c` and `d`, `E::f()` and `g::h::i`").into_iter().collect::<Vec<_>>(),
        ["b::c", "g::h::i"]
    );
    let place = |name| Place::of(name).expect("a path");
    assert_eq!(place("engine::crash::x").file, Path::new("tests/engine/crash.rs"));
    assert_eq!(place("storm::main::x").file, Path::new("tests/storm/main.rs"));
    let nested = place("engine::steps::once::x");
    assert_eq!(nested.file, Path::new("tests/engine/steps/once.rs"));
    let declared_in =
        [("tests/engine/main.rs".into(), "steps"), ("tests/engine/steps/mod.rs".into(), "once")];
    assert_eq!(nested.declared_in, declared_in);
    let case = place("conformance::owners::x");
    assert_eq!(case.file, Path::new("idempotent-runtime/src/testing/conformance/owners.rs"));
    assert_eq!(case.list, Path::new("idempotent-runtime/src/testing/conformance/mod.rs"));

    assert_eq!(defined_as("#[tokio::test]\n// why\nasync fn x() {}", "x"), Some(Defined::Test));
    assert_eq!(
        defined_as("#[test]\nfn y() {}\n\npub async fn x<B>() {}", "x"),
        Some(Defined::Function)
    );
    for other in ["fn xy() {}", "fn yx() {}", "// fn x() {}", "x()", ""] {
        assert_eq!(defined_as(other, "x"), None, "{other}");
    }
    assert!(is_listed("    kills::x,\n", "kills", "x") && is_listed("    x;\n", "owners", "x"));
    assert!(!is_listed("    // kills::x,\n    kills::xy,\n    steps::x,\n", "kills", "x"));
}
