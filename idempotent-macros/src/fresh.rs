//! Finds values that are new in every call. A key made from one would not recognise a retry.

use proc_macro2::{Ident, Spacing, Span, TokenStream, TokenTree};

/// Functions that return a fresh value, by the last two segments of their paths.
const FUNCTIONS: [(&str, &[&str]); 10] = [
    // `new_v3`, `new_v5` and `new_v8` depend only on their arguments.
    ("Uuid", &["new_v4", "new_v7", "now_v1", "now_v6", "now_v7"]),
    ("Ulid", &["new", "generate"]),
    ("SystemTime", &["now"]),
    ("Instant", &["now"]),
    ("Utc", &["now"]),
    ("Local", &["now"]),
    ("OffsetDateTime", &["now_utc", "now_local"]),
    ("UtcDateTime", &["now"]),
    ("Zoned", &["now"]),
    ("Timestamp", &["now"]),
];

/// Crates in which every function returns a fresh value.
const CRATES: [&str; 3] = ["rand", "fastrand", "getrandom"];

/// Returns the first path in `tokens` that produces a fresh value, and its span.
///
/// Checks only the text: fresh values from the user's own functions are not found.
pub(crate) fn fresh_value(tokens: TokenStream) -> Option<(String, Span)> {
    let mut paths = Vec::new();
    collect_paths(tokens, &mut paths);
    paths.iter().find(|path| is_fresh(path)).and_then(|path| {
        let text = path.iter().map(Ident::to_string).collect::<Vec<_>>().join("::");
        path.last().map(|last| (text, last.span()))
    })
}

fn is_fresh(path: &[Ident]) -> bool {
    let [.., owner, function] = path else {
        return false;
    };
    CRATES.iter().any(|name| path[0] == name)
        || FUNCTIONS
            .iter()
            .any(|(name, functions)| owner == name && functions.iter().any(|name| function == name))
}

fn collect_paths(tokens: TokenStream, paths: &mut Vec<Vec<Ident>>) {
    let mut path = Vec::new();
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Ident(ident) => {
                path.push(ident);
                // `::` is two colons, of which the first is joint.
                let colon = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ':');
                let joint = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.spacing() == Spacing::Joint);
                if tokens.next_if(|token| colon(token) && joint(token)).is_some() {
                    tokens.next_if(colon);
                    if matches!(tokens.peek(), Some(TokenTree::Ident(_))) {
                        continue;
                    }
                }
                paths.push(std::mem::take(&mut path));
            }
            TokenTree::Group(group) => collect_paths(group.stream(), paths),
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fresh_value;

    fn found(source: &str) -> Option<String> {
        fresh_value(source.parse().unwrap()).map(|(path, _)| path)
    }

    #[test]
    fn fresh_values_are_found_wherever_they_are() {
        assert_eq!(found("Uuid::new_v4()").unwrap(), "Uuid::new_v4");
        assert_eq!(found("::uuid::Uuid::now_v7()").unwrap(), "uuid::Uuid::now_v7");
        assert_eq!(found("(order.id, SystemTime::now())").unwrap(), "SystemTime::now");
        assert_eq!(
            found("std::time::Instant::now().elapsed()").unwrap(),
            "std::time::Instant::now"
        );
        assert_eq!(found("format!(\"{}\", rand::random::<u64>())").unwrap(), "rand::random");
        assert_eq!(found("rand::rng().next_u64()").unwrap(), "rand::rng");
        assert_eq!(found("f(|| Utc::now().date())").unwrap(), "Utc::now");
        assert_eq!(found("chrono::Local::now()").unwrap(), "chrono::Local::now");
        assert_eq!(found("OffsetDateTime::now_utc()").unwrap(), "OffsetDateTime::now_utc");
        assert_eq!(found("a.map_or_else(Uuid::new_v4, f)").unwrap(), "Uuid::new_v4");
    }

    #[test]
    fn values_made_of_the_arguments_are_fine() {
        for source in [
            "order.id",
            "Uuid::new_v5(&NAMESPACE, order.name.as_bytes())",
            "self.clock.now()",
            "order.rand",
            "Instant::from(order.at)",
            "(a, b::<Uuid>::c)",
            "Utc, now()",
        ] {
            assert_eq!(found(source), None, "{source}");
        }
    }
}
