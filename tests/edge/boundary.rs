//! The HTTP layer and the inbox are edges like any other: what they take from the engine, everybody
//! can take.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The modules that these edges may use beside the root's public items: that of edges, and the
/// contract of stores with its values.
const ALLOWED: &[&str] = &["clock", "edge", "error", "key", "record", "store", "tx"];

/// The edges, each with its own module.
const EDGES: [&str; 2] = ["http", "inbox"];

/// The files of the runtime crate, by their paths in its `src`, without comments.
pub fn sources() -> BTreeMap<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("idempotent-runtime/src");
    let (mut places, mut sources) = (vec![root.clone()], BTreeMap::new());
    while let Some(place) = places.pop() {
        if place.is_dir() {
            places.extend(fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let text = without_comments(&fs::read_to_string(&place).unwrap());
            sources.insert(place.strip_prefix(&root).unwrap().to_owned(), text);
        }
    }
    sources
}

fn without_comments(text: &str) -> String {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| [line, "\n"]).collect()
}

fn is_of_edge(file: &Path) -> bool {
    EDGES.iter().any(|edge| file.starts_with(edge))
}

/// The first names after each `crate::` in `code`, also of `crate::{…}`.
pub fn paths(code: &str) -> Vec<&str> {
    let is_inside = |before: &str| before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
    let mut names = Vec::new();
    for (at, prefix) in code.match_indices("crate::") {
        let rest = &code[at + prefix.len()..];
        if is_inside(&code[..at]) {
            continue;
        }
        match rest.strip_prefix('{') {
            None => names.push(name(rest)),
            Some(group) => {
                let mut depth = 0;
                let mut start = 0;
                for (at, character) in group.char_indices() {
                    match character {
                        '{' => depth += 1,
                        '}' if depth > 0 => depth -= 1,
                        ',' | '}' if depth == 0 => {
                            names.push(name(group[start..at].trim_start()));
                            start = at + 1;
                            if character == '}' {
                                break;
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn name(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The names of functions in `code` whose declaration begins with `visibility`.
fn functions<'a>(code: &'a str, visibility: &str) -> BTreeSet<&'a str> {
    let declared = code.lines().filter_map(|line| {
        let line = line.trim_start().strip_prefix(visibility)?;
        let line = line.strip_prefix("const ").unwrap_or(line);
        let line = line.strip_prefix("async ").unwrap_or(line);
        line.strip_prefix("fn ").map(name)
    });
    declared.collect()
}

#[test]
fn the_edges_use_public_items_and_the_contract_alone() {
    for (file, code) in sources().iter().filter(|(file, _)| is_of_edge(file)) {
        for name in paths(code) {
            // The root exports its public items alone.
            let is_item_of_root = name.starts_with(char::is_uppercase);
            assert!(
                is_item_of_root || ALLOWED.contains(&name) || file.starts_with(name),
                "{}: crate::{name} is not for edges",
                file.display()
            );
        }
        assert!(!code.contains(".inner."), "{}: reads the engine's state", file.display());
    }
}

#[test]
fn the_edges_call_no_function_that_edges_elsewhere_lack() {
    let sources = sources();
    // Of the types that the root exports. All others cannot be named.
    let exported = ["call", "mod", "record", "report", "shutdown", "view"]
        .map(|file| format!("engine/{file}.rs"));
    let is_of_engine = |file: &Path| {
        file == Path::new("context.rs") || exported.iter().any(|other| file == Path::new(other))
    };
    let of = |is_meant: &dyn Fn(&Path) -> bool, visibility| -> BTreeSet<&str> {
        let files = sources.iter().filter(|(file, _)| is_meant(file));
        files.flat_map(|(_, code)| functions(code, visibility)).collect()
    };
    let private = of(&is_of_engine, "pub(crate) ");
    assert!(private.contains("in_scope"), "{private:?}");
    // A name that is also public elsewhere, or the layer's own, says nothing.
    let others: BTreeSet<&str> = of(&|_| true, "pub ")
        .into_iter()
        .chain(
            ["", "pub(super) ", "pub(crate) "]
                .iter()
                .flat_map(|visibility| of(&|file| !is_of_engine(file), visibility)),
        )
        .collect();
    for (file, code) in sources.iter().filter(|(file, _)| is_of_edge(file)) {
        for name in private.difference(&others) {
            assert!(
                !code.contains(&format!(".{name}(")) && !code.contains(&format!("::{name}(")),
                "{}: calls `{name}`, which is private to the engine",
                file.display()
            );
        }
    }
}

#[test]
fn nothing_else_knows_of_the_edges() {
    for edge in EDGES {
        for (file, code) in sources().iter().filter(|(file, _)| !file.starts_with(edge)) {
            assert!(!paths(code).contains(&edge), "{}: uses {edge}", file.display());
            let mentions = code.matches(&format!(r#"feature = "{edge}""#)).count();
            let declares = usize::from(file == Path::new("lib.rs"));
            assert_eq!(mentions, declares, "{}: mentions the feature {edge}", file.display());
        }
    }
}

#[test]
fn each_name_after_crate_is_found() {
    let code = "use crate::{edge::{self, End}, engine::Inner, Context};\nlet x = crate::outcome::y();\nmycrate::z();";
    assert_eq!(paths(code), ["edge", "engine", "Context", "outcome"]);
    let code = "use crate::{\n    Context,\n    edge::End,\n};\n";
    assert_eq!(paths(code), ["Context", "edge"]);
    assert_eq!(without_comments("a\n    // crate::engine\nb\n"), "a\nb\n");
    assert_eq!(
        functions("pub(crate) async fn a() {\n  pub(crate) fn b<T>() {\npub fn c()", "pub(crate) "),
        BTreeSet::from(["a", "b"])
    );
}
