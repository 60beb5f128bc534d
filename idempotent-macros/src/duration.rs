//! Durations: texts like `"24h"` are checked at compile time; expressions are left to the compiler.

use std::time::Duration;

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote_spanned};
use syn::Expr;

use crate::args::{plain, string};
use crate::errors::Errors;

pub(crate) enum Time {
    Literal { value: Duration, span: Span },
    Expression(Box<Expr>),
}

impl Time {
    /// Returns the duration, if it is known at compile time.
    pub(crate) fn known(&self) -> Option<Duration> {
        match self {
            Self::Literal { value, .. } => Some(*value),
            Self::Expression(_) => None,
        }
    }
}

impl ToTokens for Time {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        match self {
            Self::Literal { value, span } => {
                let (seconds, nanoseconds) = (value.as_secs(), value.subsec_nanos());
                tokens.extend(
                    quote_spanned!(*span=> ::core::time::Duration::new(#seconds, #nanoseconds)),
                );
            }
            Self::Expression(value) => value.to_tokens(tokens),
        }
    }
}

/// Parses the value of the option `name`; `example` is a correct one.
pub(crate) fn parse(name: &str, example: &str, value: Expr, errors: &mut Errors) -> Option<Time> {
    let Some(literal) = string(&value) else {
        if let Expr::Lit(number) = plain(&value) {
            errors.over(
                number,
                format!("a duration must be a string with a unit: write `{example}`"),
            );
            return None;
        }
        return Some(Time::Expression(Box::new(value)));
    };
    match humantime::parse_duration(&literal.value()) {
        // `settle` may be zero: an outcome that is settled at once can be verified at once.
        Ok(Duration::ZERO) if name != "settle" => {
            let reason = match name {
                "ttl" => "a record that is kept for no time protects nothing",
                "lease" => "a claim without a lease time is lost immediately",
                "refuse" => "refusing for no time is the same as leaving `after_expiry` out",
                _ => "waiting for no time is `on_conflict = reject`",
            };
            errors.at(literal.span(), format!("`{name}` is zero, and {reason}: write `{example}`"));
            None
        }
        Ok(value) => Some(Time::Literal { value, span: literal.span() }),
        Err(error) => {
            errors.at(
                literal.span(),
                format!("`{name}` is not a valid duration ({error}): write `{example}`"),
            );
            None
        }
    }
}
