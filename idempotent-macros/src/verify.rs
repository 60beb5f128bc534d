//! `on_crash = verify(…)`: the callback that a caller after a crash runs before anything else.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Block, Expr, ExprCall, ExprClosure, ReturnType, Type};

use crate::args::{plain, string, word};
use crate::duration::{self, Time};
use crate::errors::Errors;
use crate::required;
use crate::types::erased;

pub(crate) struct Verify {
    /// A path or a closure.
    pub(crate) question: Expr,
    pub(crate) settle: Option<Time>,
}

const EXAMPLE: &str = "on_crash = verify(ask_provider)";
const SETTLE_EXAMPLE: &str = "on_crash = verify(ask_provider, settle = \"5s\")";

/// Parses the tokens between the parentheses of `verify(…)`.
pub(crate) fn parse(call: &ExprCall, errors: &mut Errors) -> Option<Verify> {
    let mut values = call.args.iter();
    let Some(question) = values.next() else {
        errors.over(call, format!("`verify` needs a function to call: write `{EXAMPLE}`"));
        return None;
    };
    if !matches!(plain(question), Expr::Path(_) | Expr::Closure(_)) || string(question).is_some() {
        errors.over(
            question,
            format!(
                "`verify` takes a function: write `{EXAMPLE}`, or a closure, which can use the \
                 arguments, `on_crash = verify(async |context| …)`"
            ),
        );
        return None;
    }
    let mut settle = None;
    for value in values {
        match plain(value) {
            Expr::Assign(named)
                if word(&named.left).as_deref() == Some("settle") && settle.is_none() =>
            {
                settle = Some(duration::parse(
                    "settle",
                    SETTLE_EXAMPLE,
                    (*named.right).clone(),
                    errors,
                )?);
            }
            _ => {
                errors.over(
                    value,
                    format!(
                        "`verify` takes one function and a `settle` delay: write `{SETTLE_EXAMPLE}`"
                    ),
                );
                return None;
            }
        }
    }
    Some(Verify { question: question.clone(), settle })
}

/// Generates the callback that is passed to the runtime.
///
/// A closure becomes an async one without `move`: it borrows the arguments, so that the body can
/// still move them. Its return type is fixed in the first line, so that `?` and `return` in it
/// require no annotation.
pub(crate) fn question(question: &Expr, private: &TokenStream, output: &Type) -> TokenStream {
    let Expr::Closure(closure) = plain(question) else {
        // As a direct argument, the path would have the span of the called path, and Clippy would take
        // the function for one that is called here: it reports those that need not be async.
        let (first, last) = required::ends(question);
        let (private, value) = (required::placed(private, first), Ident::new("value", last));
        return quote_spanned!(first=> #private::Given { value: #question }.#value);
    };
    let Some(block) = future(closure) else { return quote!(#closure) };
    let ExprClosure { attrs, inputs, .. } = closure;
    let result = Ident::new("__result", Span::mixed_site());
    let erased = erased(output);
    let edge = quote_spanned! {output.span()=>
        #[allow(unknown_lints, unreachable_code, clippy::all, clippy::nursery, clippy::pedantic, clippy::restriction)]
        if false {
            let #result: #private::Asked<#erased> = loop {};
            return #result;
        }
    };
    quote!(#(#attrs)* async |#inputs| { #edge #block })
}

/// Returns the body of an async closure, or of a closure that only creates a future.
fn future(closure: &ExprClosure) -> Option<TokenStream> {
    if !matches!(closure.output, ReturnType::Default) {
        return None;
    }
    let statements = |block: &Block| {
        let statements = &block.stmts;
        quote!(#(#statements)*)
    };
    match (closure.asyncness, plain(&closure.body)) {
        (Some(_), Expr::Block(block)) if block.label.is_none() => Some(statements(&block.block)),
        (Some(_), body) => Some(quote!(#body)),
        (None, Expr::Async(block)) => Some(statements(&block.block)),
        (None, _) => None,
    }
}
