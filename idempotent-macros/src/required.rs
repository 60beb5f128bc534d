//! What the expansion requires of the user's types and values, so that the compiler reports a mistake
//! at the user's tokens and speaks of nothing else.
//!
//! A function with a bound would be reported along with the type that does not meet it: "required by
//! a bound introduced by this call", and the path of the function. The implicit `Self: Trait` of a
//! trait's own function is not, and neither is the type of a field.

use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, quote, quote_spanned};

/// Returns the path of a function of a trait. A type without the trait is reported at `place`.
pub(crate) fn function(
    private: &TokenStream,
    of_trait: &str,
    generics: &TokenStream,
    name: &str,
    place: &impl ToTokens,
) -> TokenStream {
    let (first, last) = ends(place);
    let private = placed(private, first);
    let (of_trait, name) = (Ident::new(of_trait, first), Ident::new(name, last));
    quote_spanned!(first=> #private::#of_trait #generics::#name)
}

/// Returns `value`. A value of another type than `of_type` is reported there.
pub(crate) fn given(
    private: &TokenStream,
    of_type: &TokenStream,
    value: &impl ToTokens,
) -> TokenStream {
    quote!(#private::Given::<#of_type> { value: #value }.value)
}

/// Returns the spans of the first and of the last token.
pub(crate) fn ends(tokens: &impl ToTokens) -> (Span, Span) {
    let mut tokens = tokens.to_token_stream().into_iter();
    let first = tokens.next();
    let last = tokens.last().or_else(|| first.clone());
    let opening = first.as_ref().map_or_else(Span::call_site, |token| match token {
        TokenTree::Group(group) => group.span_open(),
        other => other.span(),
    });
    let closing = last.as_ref().map_or_else(Span::call_site, |token| match token {
        TokenTree::Group(group) => group.span_close(),
        other => other.span(),
    });
    (opening, closing)
}

/// Returns the path, reported at `span`, without a word about the attribute if it can be resolved
/// there: from the root, it means the same everywhere. Others keep the place of their resolution.
pub(crate) fn placed(path: &TokenStream, span: Span) -> TokenStream {
    let is_global = matches!(
        path.clone().into_iter().next(),
        Some(TokenTree::Punct(punct)) if punct.as_char() == ':'
    );
    path.clone()
        .into_iter()
        .map(|mut token| {
            token.set_span(if is_global { span } else { token.span().located_at(span) });
            token
        })
        .collect()
}
