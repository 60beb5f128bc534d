//! Collects every mistake, so that one compilation shows them all.

use std::fmt::Display;

use proc_macro2::{Span, TokenStream};
use quote::ToTokens;
use syn::Error;

/// The mistakes found so far.
#[derive(Default)]
pub(crate) struct Errors {
    first_to_last: Option<Error>,
}

impl Errors {
    /// Reports `message` at one token.
    pub(crate) fn at(&mut self, span: Span, message: impl Display) {
        self.push(Error::new(span, message));
    }

    /// Reports `message` at everything that `tokens` covers.
    pub(crate) fn over(&mut self, tokens: impl ToTokens, message: impl Display) {
        self.push(Error::new_spanned(tokens, message));
    }

    pub(crate) fn push(&mut self, error: Error) {
        match &mut self.first_to_last {
            Some(errors) => errors.combine(error),
            none => *none = Some(error),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first_to_last.is_none()
    }

    /// Returns one `compile_error!` for each mistake, nothing if there is none.
    pub(crate) fn into_compile_errors(self) -> TokenStream {
        self.first_to_last.map(Error::into_compile_error).unwrap_or_default()
    }
}
