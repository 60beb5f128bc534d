//! Key templates: `"order:{order.id}:{user}"` is the tuple of its literal parts and its values.

use std::ops::Range;

use proc_macro2::{Span, TokenStream};
use syn::parse::{ParseStream, Parser};
use syn::{Expr, LitStr, Token};

use crate::errors::Errors;

/// A piece of a template.
pub(crate) enum Part {
    Text(LitStr),
    Value(Box<Expr>),
}

/// Splits `literal`. No part is a value if and only if the literal has no braces except escaped
/// ones; the text is then the only part.
pub(crate) fn parts(literal: &LitStr, errors: &mut Errors) -> Vec<Part> {
    let text = literal.value();
    let mut parts = Vec::new();
    let mut pending = String::new();
    let mut rest = text.char_indices().peekable();
    while let Some((at, character)) = rest.next() {
        match character {
            '{' | '}' if rest.next_if(|(_, next)| *next == character).is_some() => {
                pending.push(character);
            }
            '{' => {
                let start = at + 1;
                let Some(end) = closing_brace(&text, start) else {
                    errors.at(
                        span_of(literal, &text, at..text.len()),
                        "this `{` has no `}`; to write a literal brace, double it: `{{`",
                    );
                    return Vec::new();
                };
                if !pending.is_empty() {
                    parts.push(Part::Text(LitStr::new(
                        &std::mem::take(&mut pending),
                        literal.span(),
                    )));
                }
                match value(&text[start..end], span_of(literal, &text, start..end)) {
                    Ok(value) => parts.push(Part::Value(Box::new(value))),
                    Err(error) => errors.push(error),
                }
                while rest.next_if(|(next, _)| *next <= end).is_some() {}
            }
            '}' => {
                errors.at(
                    span_of(literal, &text, at..at + 1),
                    "this `}` has no `{`; to write a literal brace, double it: `}}`",
                );
                return Vec::new();
            }
            _ => pending.push(character),
        }
    }
    if !pending.is_empty() || parts.is_empty() {
        parts.push(Part::Text(LitStr::new(&pending, literal.span())));
    }
    parts
}

/// Returns the end of the value that begins at `start`. The value may contain braces, in pairs, and
/// any braces in literals.
fn closing_brace(text: &str, start: usize) -> Option<usize> {
    let (mut at, mut depth) = (start, 0_usize);
    let mut word = "";
    while let Some(next) = text[at..].chars().next() {
        match next {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
        let length = literal(word, &text[at..])?;
        if length > 0 {
            (at, word) = (at + length, "");
            continue;
        }
        at += next.len_utf8();
        let is_in_word = next == '_' || next.is_alphanumeric();
        word = if is_in_word { &text[at - next.len_utf8() - word.len()..at] } else { "" };
    }
    None
}

/// Returns the length of the string or character literal at the start of `rest`, which follows
/// `word`. Zero if there is none, `None` if it does not end.
fn literal(word: &str, rest: &str) -> Option<usize> {
    let after = |end: &str, from: usize| rest[from..].find(end).map(|at| from + at + end.len());
    if matches!(word, "r" | "br" | "cr") {
        let hashes = rest.len() - rest.trim_start_matches('#').len();
        if rest[hashes..].starts_with('"') {
            return after(&format!("\"{}", &rest[..hashes]), hashes + 1);
        }
    }
    let mut characters = rest.char_indices();
    let Some((_, quote @ ('"' | '\''))) = characters.next() else { return Some(0) };
    // One character and a second quote; otherwise it is a lifetime or a label.
    let is_text = quote == '"' || rest[1..].starts_with('\\') || rest.chars().nth(2) == Some('\'');
    if !is_text {
        return Some(0);
    }
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => drop(characters.next()),
            _ if character == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Parses the expression between two braces.
fn value(source: &str, span: Span) -> syn::Result<Expr> {
    if source.trim().is_empty() {
        return Err(syn::Error::new(span, "these braces are empty: write `{order.id}`"));
    }
    let tokens: TokenStream = LitStr::new(source, span).parse().map_err(|_| {
        syn::Error::new(span, format!("`{{{source}}}` is not an expression: write `{{order.id}}`"))
    })?;
    let parser = |input: ParseStream| {
        let value: Expr = input.parse().map_err(|_| {
            syn::Error::new(
                span,
                format!("`{{{source}}}` is not an expression: write `{{order.id}}`"),
            )
        })?;
        if input.is_empty() {
            return Ok(value);
        }
        let message = if input.peek(Token![:]) {
            let name = source.split(':').next().unwrap_or(source).trim();
            format!(
                "a key is made of values, not of formatted text, so it cannot have format \
                 specifiers: write `{{{name}}}`"
            )
        } else {
            format!("`{{{source}}}` is not one expression: write `{{order.id}}`")
        };
        // The rest has been checked; leaving it would add an error about an unexpected token.
        input.parse::<TokenStream>()?;
        Err(syn::Error::new(span, message))
    };
    match parser.parse2(tokens)? {
        Expr::Lit(literal) => Err(syn::Error::new_spanned(
            literal,
            "a key template cannot have positions or constants in braces: write `{order.id}`",
        )),
        value => Ok(value),
    }
}

/// Returns the span of `range` in the literal's text if the compiler knows it, otherwise the span
/// of the whole literal.
fn span_of(literal: &LitStr, text: &str, range: Range<usize>) -> Span {
    let token = literal.token();
    let is_verbatim = token.to_string() == format!("\"{text}\"");
    // The opening quote comes before the text.
    is_verbatim
        .then(|| token.subspan(range.start + 1..=range.end))
        .flatten()
        .unwrap_or_else(|| literal.span())
}

#[cfg(test)]
mod tests {
    use quote::ToTokens;

    use super::{Part, parts};
    use crate::errors::Errors;

    fn split(text: &str) -> Result<Vec<String>, String> {
        let mut errors = Errors::default();
        let parts = parts(&syn::LitStr::new(text, proc_macro2::Span::call_site()), &mut errors);
        if !errors.is_empty() {
            return Err(errors.into_compile_errors().to_string());
        }
        Ok(parts
            .iter()
            .map(|part| match part {
                Part::Text(text) => format!("text {}", text.value()),
                Part::Value(value) => format!("value {}", value.to_token_stream()),
            })
            .collect())
    }

    #[test]
    fn text_and_values_are_parts_and_empty_text_is_none() {
        assert_eq!(
            split("order:{order.id}:{user}").unwrap(),
            ["text order:", "value order . id", "text :", "value user"]
        );
        assert_eq!(split("{a}/{b}").unwrap(), ["value a", "text /", "value b"]);
        assert_eq!(split("{a}{b}").unwrap(), ["value a", "value b"]);
        assert_eq!(split("{a}").unwrap(), ["value a"]);
    }

    #[test]
    fn without_values_the_text_is_the_key() {
        assert_eq!(split("nightly").unwrap(), ["text nightly"]);
        assert_eq!(split("").unwrap(), ["text "]);
        assert_eq!(split("{{a}}").unwrap(), ["text {a}"]);
    }

    #[test]
    fn doubled_braces_are_text() {
        assert_eq!(split("{{{a}}}").unwrap(), ["text {", "value a", "text }"]);
        assert_eq!(split("é{{{a}ß").unwrap(), ["text é{", "value a", "text ß"]);
    }

    #[test]
    fn values_are_any_expression() {
        assert_eq!(
            split("{items[0].id}-{Kind::of(a)}").unwrap(),
            ["value items [0] . id", "text -", "value Kind :: of (a)"]
        );
        assert_eq!(
            split("{match a { A { id } => id }}").unwrap(),
            ["value match a { A { id } => id }"]
        );
        assert_eq!(split("{ a }").unwrap(), ["value a"]);
    }

    #[test]
    fn braces_in_literals_of_a_value_are_text() {
        for value in [
            r"a.split('}')",
            r"a.split('{')",
            r#"a.replace("{", "}}")"#,
            r"a.split('\'').count() + '}'.len_utf8()",
            r#"a.replace("\"}", "")"#,
            "a.replace(r\"\\}\", r#\"\"}\"#)",
            r#"a.find(b"}") + br"{".len() + usize::from(b'}')"#,
            r"'outer: loop { break 'outer a.as_bytes()[0] }",
            r#"keep::<'static>(a, r#type, "}")"#,
        ] {
            assert_eq!(split(&format!("{{{value}}}:{{b}}")).unwrap().len(), 3, "{value}");
        }
        assert!(
            split(r"{a.split('}").unwrap_err().contains("not an expression"),
            "a lifetime without a name"
        );
        assert!(split(r#"{a.split("}"#).unwrap_err().contains("this `{` has no `}`"));
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        assert!(split("{}").unwrap_err().contains("these braces are empty"));
        assert!(split("{a").unwrap_err().contains("this `{` has no `}`"));
        assert!(split("a}").unwrap_err().contains("this `}` has no `{`"));
        assert!(split("{a:?}").unwrap_err().contains("write `{a}`"));
        assert!(split("{a:>5}").unwrap_err().contains("cannot have format specifiers"));
        assert!(split("{a b}").unwrap_err().contains("not one expression"));
        assert!(split("{+}").unwrap_err().contains("not an expression"));
        assert!(split("{(}").unwrap_err().contains("not an expression"));
        assert!(split("{0}").unwrap_err().contains("cannot have positions"));
    }
}
