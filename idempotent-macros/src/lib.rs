//! The `#[idempotent]` attribute of the crate [`idempotency`](https://docs.rs/idempotency). Depend
//! on that crate, not on this one.
//!
//! There are three steps: `args` and `func` parse what the user wrote, `check` validates it, and
//! `expand` generates the function. Mistakes are collected and reported together. In that case the
//! function is left unchanged, so that its callers do not fail as well.

mod args;
mod check;
mod constants;
mod detach;
mod duration;
mod errors;
mod expand;
mod fresh;
mod func;
mod key;
mod nearest;
mod required;
#[cfg(test)]
mod snapshots;
mod template;
mod transaction;
mod types;
mod verify;

use proc_macro2::{Span, TokenStream};

use crate::errors::Errors;
use crate::func::Function;

/// Makes an async function safe to retry. See the documentation of the crate `idempotency`.
#[proc_macro_attribute]
pub fn idempotent(
    args: proc_macro::TokenStream,
    item: proc_macro::TokenStream,
) -> proc_macro::TokenStream {
    rewrite(args.into(), item.into()).into()
}

/// The attribute on tokens that work outside of the compiler.
fn rewrite(args: TokenStream, item: TokenStream) -> TokenStream {
    let mut errors = Errors::default();
    let args = args::parse(args, &mut errors);
    let Ok(function) = syn::parse2::<Function>(item.clone()) else {
        errors.at(
            Span::call_site(),
            "`#[idempotent]` can only be applied to an `async fn`, free or in an `impl`",
        );
        let mut output = errors.into_compile_errors();
        output.extend(item);
        return output;
    };
    check::check(&args, &function, &mut errors);
    if errors.is_empty() {
        return expand::expand(&args, function);
    }
    let mut output = errors.into_compile_errors();
    output.extend(function.unexpanded());
    output
}
