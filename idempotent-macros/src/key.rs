//! Keys and scopes: any expression, a tuple whose parts are borrowed one by one, or a template.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Expr, ExprReference, LitStr, Token};

use crate::args::{plain, string};
use crate::errors::Errors;
use crate::fresh::fresh_value;
use crate::required;
use crate::template::{self, Part};

pub(crate) enum Key {
    Constant(LitStr),
    Value(Box<Expr>),
    Parts(Vec<Part>),
}

/// Parses the value of the option `name`.
pub(crate) fn parse(name: &str, value: &Expr, errors: &mut Errors) -> Key {
    if let Some(literal) = string(value) {
        let mut parts = template::parts(literal, errors);
        for part in &parts {
            if let Part::Value(value) = part {
                refuse_fresh_value(name, value, errors);
            }
        }
        return match &mut parts[..] {
            [Part::Text(text)] => Key::Constant(text.clone()),
            _ => Key::Parts(parts),
        };
    }
    refuse_fresh_value(name, value, errors);
    match plain(value) {
        Expr::Tuple(tuple) if !tuple.elems.is_empty() => {
            Key::Parts(tuple.elems.iter().map(|part| Part::Value(Box::new(part.clone()))).collect())
        }
        plain => Key::Value(Box::new(plain.clone())),
    }
}

/// Reports a value that is new in every call.
pub(crate) fn refuse_fresh_value(name: &str, value: &Expr, errors: &mut Errors) {
    if let Some((path, span)) = fresh_value(value.to_token_stream()) {
        errors.at(
            span,
            format!(
                "`{path}` returns a different value in every call, so no retry would be \
                 recognised: build `{name}` from what the caller repeats, `{name} = order.id`"
            ),
        );
    }
}

impl Key {
    /// Returns the expression of type `Key`.
    pub(crate) fn encoded(&self, private: &TokenStream) -> TokenStream {
        match self {
            Self::Constant(text) => quote!(#private::Key::of(#text)),
            Self::Value(value) => {
                let encode = encode(private, value);
                quote!(#private::Key::encoded(#encode))
            }
            Self::Parts(parts) => {
                let encoder = encoder();
                let added = parts.iter().map(|part| part.added(private));
                quote!(#private::Key::from_parts(|#encoder| #encoder #(#added)*))
            }
        }
    }
}

/// The name of the encoder that the parts of a key are added to.
fn encoder() -> Ident {
    Ident::new("__parts", Span::mixed_site())
}

/// Returns method calls that add one part each, so that an invalid part of a tuple is reported
/// there.
fn added(value: &Expr, private: &TokenStream) -> TokenStream {
    match plain(value) {
        Expr::Tuple(tuple) if !tuple.elems.is_empty() => {
            let encoder = encoder();
            let parts = tuple.elems.iter().map(|part| added(part, private));
            quote!(.tuple(|#encoder| { #encoder #(#parts)*; }))
        }
        _ => {
            let encode = encode(private, value);
            quote!(.encoded(#encode))
        }
    }
}

/// Returns a closure that writes the value, whose type it requires to be a key.
fn encode(private: &TokenStream, value: &Expr) -> TokenStream {
    let encode = required::function(private, "IntoKey", &TokenStream::new(), "encode", value);
    let encoder = Ident::new("__encoder", Span::mixed_site());
    let value = borrowed(value);
    quote!(|#encoder| #encode(#value, #encoder))
}

impl Part {
    fn added(&self, private: &TokenStream) -> TokenStream {
        match self {
            Self::Text(text) => quote!(.add(#text)),
            Self::Value(value) => added(value, private),
        }
    }
}

/// Returns `&value`. The parts of a tuple are borrowed one by one, so that none of them is moved
/// out of an argument.
pub(crate) fn borrowed(value: &Expr) -> TokenStream {
    let span = value.span();
    if let Expr::Tuple(tuple) = plain(value) {
        let parts = tuple.elems.iter().map(borrowed);
        return quote_spanned!(span=> &(#(#parts,)*));
    }
    // Built as a syntax tree, which inserts parentheses where `&` needs them.
    let reference = ExprReference {
        attrs: Vec::new(),
        and_token: Token![&](span),
        mutability: None,
        expr: Box::new(value.clone()),
    };
    reference.into_token_stream()
}
