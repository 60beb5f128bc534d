//! Finds texts that were meant as arguments: `key = "order.id"`. Such a key is the same in every
//! call, and all calls would get the result of the first.

use proc_macro2::{Delimiter, Group, Ident, Span, TokenStream, TokenTree};
use quote::ToTokens;
use syn::ext::IdentExt;
use syn::{Expr, Lit};

use crate::args::{Args, string};
use crate::errors::Errors;
use crate::func::{Function, mentions};

/// Reports the first such text of each option.
pub(crate) fn check(args: &Args, function: &Function, errors: &mut Errors) {
    let names = function.names();
    for (option, value) in &args.telling_apart {
        if let Some((meant, span)) = meant_in(value, &names) {
            let Meant { text, written, .. } = &meant;
            let reason = match *option {
                "scope" => "the same for every caller, so it separates no callers",
                "fingerprint" => "the same in every call, so it cannot distinguish two requests",
                _ => "the same in every call, so all calls would get the result of the first",
            };
            let template = match *option {
                "fingerprint" => String::new(),
                option => format!(", or a template, `{option} = \"{{{written}}}\"`"),
            };
            errors.at(
                span,
                format!(
                    "\"{text}\" is a string literal, {reason}: write `{option} = \
                     {written}`{template}"
                ),
            );
        }
    }
}

/// A text that was meant as an argument.
struct Meant {
    text: String,
    argument: Ident,
    /// The expression that should have been written.
    written: String,
    /// True if the text is only the name, which may also be a prefix.
    is_bare: bool,
}

fn meant_in(value: &Expr, names: &[Ident]) -> Option<(Meant, Span)> {
    let mut found = Found::default();
    found.scan(value.to_token_stream(), names, Place::default());
    let template = string(value);
    let rest = if template.is_some() { value.to_token_stream() } else { found.rest };
    let is_mentioned = |name: &Ident| mentions(&rest, name);
    let is_constant = !names.iter().any(is_mentioned);
    found.texts.into_iter().find_map(|Quoted { text, span, is_looked_up }| {
        // If a method or function is called with an argument, or on one, it is unknown what it does
        // with the text.
        if is_looked_up && !is_constant {
            return None;
        }
        let meant = match template {
            Some(_) if text.contains(['{', '}']) => word(&text, names),
            Some(_) => whole(&text, names).or_else(|| word(&text, names)),
            None => whole(&text, names)
                .or_else(|| word(&text, names))
                .or_else(|| in_braces(&text, names)),
        }?;
        // Next to other values a name is a prefix, `("order", order.id)`, and so is a text that
        // begins with one of their names.
        let is_prefix = !is_constant && (meant.is_bare || is_mentioned(&meant.argument));
        (!is_prefix).then_some((meant, span))
    })
}

/// The parts of an expression.
#[derive(Default)]
struct Found {
    texts: Vec<Quoted>,
    /// Everything else, and the texts that are passed to macros.
    rest: TokenStream,
    /// True if it contains a macro whose result is unknown.
    has_macro: bool,
}

struct Quoted {
    text: String,
    span: Span,
    /// True if it is passed to a method, an index, or a function that also gets an argument:
    /// `event.field("order.id")`.
    is_looked_up: bool,
}

/// The context of tokens.
#[derive(Clone, Copy, Default)]
struct Place {
    is_macro: bool,
    is_looked_up: bool,
}

impl Found {
    fn scan(&mut self, tokens: TokenStream, names: &[Ident], place: Place) {
        let mut tokens = tokens.into_iter().peekable();
        let mut called = None;
        let mut before = [None, None];
        while let Some(token) = tokens.next() {
            let follows = before;
            before = [follows[1].clone(), Some(token.clone())];
            let is_bang = matches!(&token, TokenTree::Punct(punct) if punct.as_char() == '!');
            match &token {
                TokenTree::Group(group) => match called.take() {
                    Some(name) if name == "stringify" => {
                        let text = group.stream().to_string().replace(' ', "");
                        self.texts.push(Quoted {
                            text,
                            span: group.span(),
                            is_looked_up: place.is_looked_up,
                        });
                    }
                    Some(name) if name == "concat" => {
                        let mut parts = Self::default();
                        parts.scan(group.stream(), names, Place::default());
                        self.has_macro |= parts.has_macro;
                        if !parts.has_macro {
                            let text = parts.texts.into_iter().map(|part| part.text).collect();
                            self.texts.push(Quoted {
                                text,
                                span: group.span(),
                                is_looked_up: place.is_looked_up,
                            });
                        }
                    }
                    called => {
                        self.has_macro |= called.is_some();
                        let is_macro = place.is_macro || called.is_some();
                        let is_looked_up = place.is_looked_up || looks_up(&follows, group, names);
                        self.scan(group.stream(), names, Place { is_macro, is_looked_up });
                    }
                },
                TokenTree::Literal(literal) if !place.is_macro => {
                    let text = text(literal).unwrap_or_else(|| literal.to_string());
                    self.texts.push(Quoted {
                        text,
                        span: literal.span(),
                        is_looked_up: place.is_looked_up,
                    });
                }
                TokenTree::Ident(ident) => {
                    let is_called = matches!(tokens.peek(), Some(TokenTree::Punct(next)) if next.as_char() == '!');
                    called = is_called.then(|| ident.clone());
                    self.rest.extend([token]);
                    continue;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => self.rest.extend([token]),
            }
            if !is_bang {
                called = None;
            }
        }
    }
}

/// Returns true if `group` is the parentheses of a method call, an index, or the parentheses of a
/// function call that contain an argument.
fn looks_up(before: &[Option<TokenTree>; 2], group: &Group, names: &[Ident]) -> bool {
    match (group.delimiter(), before) {
        (Delimiter::Bracket, [_, Some(TokenTree::Ident(_) | TokenTree::Group(_))]) => true,
        (Delimiter::Parenthesis, [Some(TokenTree::Punct(dot)), Some(TokenTree::Ident(_))])
            if dot.as_char() == '.' =>
        {
            true
        }
        (Delimiter::Parenthesis, [_, Some(TokenTree::Ident(_))]) => {
            names.iter().any(|name| mentions(&group.stream(), name))
        }
        _ => false,
    }
}

fn text(literal: &proc_macro2::Literal) -> Option<String> {
    match Lit::new(literal.clone()) {
        Lit::Str(text) => Some(text.value()),
        Lit::ByteStr(bytes) => String::from_utf8(bytes.value()).ok(),
        Lit::CStr(text) => text.value().into_string().ok(),
        _ => None,
    }
}

/// Finds `"id"`, `"order.id"`, `"#id"`, `"(user, id)"`: the whole text is an expression over an
/// argument.
fn whole(text: &str, names: &[Ident]) -> Option<Meant> {
    let trimmed = text.trim();
    let path = trimmed.trim_start_matches(['#', '$', '@', ':', '?', '&', '*']);
    if let Some((argument, rest)) = argument_at(path, names)
        && is_path(rest)
    {
        let is_bare = rest.is_empty() && path == trimmed;
        return Some(Meant {
            text: text.to_owned(),
            written: format!("{argument}{rest}"),
            argument,
            is_bare,
        });
    }
    let value = syn::parse_str::<Expr>(trimmed).ok()?;
    let is_expression = matches!(value, Expr::Tuple(_) | Expr::Paren(_) | Expr::Array(_));
    let tokens = value.into_token_stream();
    let argument = names.iter().find(|name| is_expression && mentions(&tokens, name))?.clone();
    Some(Meant { text: text.to_owned(), written: trimmed.to_owned(), argument, is_bare: false })
}

/// Finds `#id` or `$order.id` anywhere in the text.
fn word(text: &str, names: &[Ident]) -> Option<Meant> {
    text.match_indices(['#', '$']).find_map(|(at, sign)| {
        let begins = !text[..at].ends_with(|before: char| before.is_alphanumeric());
        let (argument, rest) = argument_at(&text[at + sign.len()..], names).filter(|_| begins)?;
        let end = rest
            .find(|next: char| !(next.is_alphanumeric() || matches!(next, '_' | '.')))
            .unwrap_or(rest.len());
        let written = format!("{argument}{}", rest[..end].trim_end_matches('.'));
        Some(Meant { text: text.to_owned(), argument, written, is_bare: false })
    })
}

/// Finds `{id}` in a text that is not a template.
fn in_braces(text: &str, names: &[Ident]) -> Option<Meant> {
    text.match_indices('{').find_map(|(at, _)| {
        let inside = text[at + 1..].split('}').next()?;
        let (argument, rest) = argument_at(inside, names).filter(|(_, rest)| is_path(rest))?;
        Some(Meant {
            text: text.to_owned(),
            written: format!("{argument}{rest}"),
            argument,
            is_bare: false,
        })
    })
}

/// Returns the argument that `text` begins with, and the rest.
fn argument_at<'a>(text: &'a str, names: &[Ident]) -> Option<(Ident, &'a str)> {
    let text = text.strip_prefix("r#").unwrap_or(text);
    let end =
        text.find(|next: char| !(next.is_alphanumeric() || next == '_')).unwrap_or(text.len());
    let argument = names.iter().find(|name| name.unraw() == text[..end])?;
    Some((argument.clone(), &text[end..]))
}

/// Returns true if the rest after a name continues a path into it (`.id`, `::id`, `[0]`, `.id()`),
/// or is empty.
fn is_path(rest: &str) -> bool {
    let rest = rest.trim_end();
    rest.is_empty()
        || (rest.starts_with(['.', '[', '(', '?', ':'])
            && rest.starts_with(':') == rest.starts_with("::")
            && syn::parse_str::<Expr>(&format!("argument{rest}")).is_ok())
}

#[cfg(test)]
mod tests {
    use proc_macro2::{Ident, Span};

    use super::meant_in;

    /// Returns the expression that should have been written in place of the value, for `order`,
    /// `id`, `r#type` and `self`.
    fn written(value: &str) -> Option<String> {
        let mut names =
            ["order", "id", "self"].map(|name| Ident::new(name, Span::call_site())).to_vec();
        names.push(Ident::new_raw("type", Span::call_site()));
        meant_in(&syn::parse_str(value).unwrap(), &names).map(|(meant, _)| meant.written)
    }

    #[test]
    fn texts_that_name_an_argument_are_found() {
        for (value, meant) in [
            (r#""id""#, "id"),
            (r#"" id ""#, "id"),
            (r##"r#"id"#"##, "id"),
            (r#"b"id""#, "id"),
            (r#""type""#, "r#type"),
            (r#""r#type""#, "r#type"),
            (r#""order.id""#, "order.id"),
            (r#""order.items[0].id""#, "order.items[0].id"),
            (r#""id.to_string()""#, "id.to_string()"),
            (r#""order::id""#, "order::id"),
            (r#""self.id""#, "self.id"),
            (r##""#id""##, "id"),
            (r##""#order.id""##, "order.id"),
            (r#""$id""#, "id"),
            (r#"":id""#, "id"),
            (r#""&order.id""#, "order.id"),
            (r#""order #id""#, "id"),
            (r#""order:#order.id.""#, "order.id"),
            (r#""{id}:#order.id""#, "order.id"),
            (r#""(order.user, id)""#, "(order.user, id)"),
            (r#"("id")"#, "id"),
            (r#"("order", "id")"#, "order"),
            (r#"("order.id", id)"#, "order.id"),
            (r#"&"id""#, "id"),
            (r#""id".to_owned()"#, "id"),
            (r#"String::from("order.id")"#, "order.id"),
            (r#""{id}".to_owned()"#, "id"),
            (r#"("{order.id}", "x")"#, "order.id"),
            (r#"concat!("order", ".", "id")"#, "order.id"),
            ("stringify!(order.id)", "order.id"),
            (r#"(id, String::from("order.id"))"#, "order.id"),
            (r#"(id, Some("order.id"))"#, "order.id"),
            (r#"NAMES.get("order.id")"#, "order.id"),
        ] {
            assert_eq!(written(value).as_deref(), Some(meant), "{value}");
        }
    }

    #[test]
    fn other_texts_are_constants() {
        for value in [
            r#""nightly report""#,
            r#""ids""#,
            r#""the id""#,
            r#""order placed""#,
            r#""order-7""#,
            r#""order:nightly""#,
            r#""order. And more""#,
            r#""report.id""#,
            r#""a#id""#,
            r##""#1""##,
            r#""{id}""#,
            r#""id:{id}""#,
            r#""order.id {order.id}""#,
            r##""#{id}""##,
            r#""${id}""#,
            r#"("order", order.id)"#,
            r#"("order.paid", order.id)"#,
            r#"("id", order.user)"#,
            r#"(id, "{id}")"#,
            r#"format!("{id}")"#,
            r#"format!("id {}", order.id)"#,
            "7",
            "NIGHTLY",
            r#"id.field("order.id")"#,
            r#"(id.kind, id.field("order.id"))"#,
            r#"id["order.id"]"#,
            r#"id.fields()["order.id"].text("type")"#,
            r#"field(id, "order.id")"#,
            r#"concat!(module_path!(), "::order")"#,
            r#"concat!(concat!(env!("CARGO_PKG_NAME")), ".id")"#,
            "id",
        ] {
            assert_eq!(written(value), None, "{value}");
        }
    }
}
