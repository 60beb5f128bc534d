//! The rules across options, and between the options and the function.

use proc_macro2::Span;
use quote::ToTokens;
use syn::{FnArg, Pat, Receiver, ReceiverKind, Type};

use crate::args::Args;
use crate::constants;
use crate::errors::Errors;
use crate::func::{Function, argument_name, is_idempotent};
use crate::transaction;
use crate::types::{self, Borrow, Output, text, unwrapped};

/// Reports every rule that is broken.
pub(crate) fn check(args: &Args, function: &Function, errors: &mut Errors) {
    options(args, function, errors);
    constants::check(args, function, errors);
    in_transaction(args, function, errors);
    qualifiers(function, errors);
    output(function, errors);
    if let Some(detach) = args.detach {
        detached(detach, function, errors);
    }
}

fn options(args: &Args, function: &Function, errors: &mut Errors) {
    let key = function.example_key();
    let whole = format!("`#[idempotent(key = {key}, ttl = \"24h\")]`");
    match (args.is_missing("key"), args.is_missing("ttl")) {
        _ if args.has_unreadable => {}
        (true, true) => errors.at(
            Span::call_site(),
            format!("`key` and `ttl` are missing: they say which calls are retries of each other, and for how long; write {whole}"),
        ),
        (true, false) => errors.at(
            Span::call_site(),
            format!("`key` is missing: it says which calls are retries of each other; write {whole}"),
        ),
        (false, true) => errors.at(
            Span::call_site(),
            format!("`ttl` is missing: it says for how long after a call its retries are recognised; write {whole}"),
        ),
        (false, false) => {}
    }
    if let (Some(ttl), Some(lease)) = (&args.ttl, &args.lease)
        && let (Some(kept), Some(leased)) = (ttl.known(), lease.known())
        && kept < leased
    {
        errors.over(ttl, "`ttl` is shorter than `lease`, so a record could expire under its owner: write a longer one, `ttl = \"24h\"`");
    }
    if args.name.is_none() && args.is_missing("name") && function.is_generic() {
        let name = &function.signature.ident;
        errors.at(
            name.span(),
            format!("`{name}` is generic, so it is many functions, which share one operation: name it, `name = \"payments.{name}\"`"),
        );
    }
    for (option, read, example) in [
        ("upgrade", "results", "upgrade = read_old_receipt"),
        ("upgrade_error", "stored errors", "upgrade_error = read_old_error"),
    ] {
        if let Some(upgrade) = args.named(option)
            && args.is_missing("version")
        {
            errors.at(
                upgrade,
                format!("`{option}` reads {read} of other versions, so this one needs a number: write `version = 1, {example}`"),
            );
        }
    }
}

/// Rejects options that have no meaning in a transaction, or cannot affect it.
fn in_transaction(args: &Args, function: &Function, errors: &mut Errors) {
    let Some(option) = args.named("tx") else { return };
    for (excluded, reason) in [
        ("detach", "a detached body outlives the caller's transaction: leave one of them out"),
        ("on_crash", "a crash rolls the transaction back: leave `on_crash` out"),
        ("lease", "a claim in a transaction lives as long as the transaction: leave `lease` out"),
    ] {
        if args.named(excluded).is_some() {
            errors
                .at(option, format!("`tx` and `{excluded}` cannot be combined, because {reason}"));
        }
    }
    if let Some(tx) = &args.tx {
        transaction::check(tx, function, errors);
    }
}

fn qualifiers(function: &Function, errors: &mut Errors) {
    let signature = &function.signature;
    let name = &signature.ident;
    for attribute in &function.attributes {
        if is_idempotent(attribute) {
            errors.over(
                attribute,
                "a function is one operation: keep one `#[idempotent(…)]` and remove this one",
            );
        }
    }
    if function.body.is_none() {
        errors.at(
            name.span(),
            format!("`{name}` has no body to protect: put `#[idempotent(…)]` on the method in each `impl`"),
        );
    }
    if let Some(constness) = &signature.constness {
        errors.over(
            constness,
            format!("a `const fn` cannot access a store: write `async fn {name}`"),
        );
    }
    if let Some(abi) = &signature.abi {
        errors.over(
            abi,
            format!(
                "an `extern` function cannot be awaited by its caller: write `async fn {name}`"
            ),
        );
    }
}

fn output(function: &Function, errors: &mut Errors) {
    let name = &function.signature.ident;
    // Qualifiers other than `async` have already been reported, with the same correction.
    let is_reported = function.signature.constness.is_some() || function.signature.abi.is_some();
    match function.output() {
        Output::Async(output) | Output::Boxed { output, .. } => result(output, errors),
        Output::Nothing => errors.at(
            name.span(),
            format!("the result is what a retry gets, and the call can fail: write `async fn {name}(…) -> Result<(), idempotency::Error>`"),
        ),
        Output::ImplFuture(output) => {
            let written = function.return_type().map(ToTokens::to_token_stream);
            errors.over(
                written,
                format!(
                    "an `async fn` is required in place of `impl Future`: write \
                     `async fn {name}(…) -> {}`",
                    text(output)
                ),
            );
        }
        Output::NotAsync => {
            if !is_reported {
                errors.over(
                    function.signature.fn_token,
                    format!(
                        "`{name}` is not async, but must be to access a store: write \
                         `async fn {name}`"
                    ),
                );
            }
            if let Some(output) = function.return_type() {
                result(output, errors);
            }
        }
    }
}

fn result(output: &Type, errors: &mut Errors) {
    if types::is_surely_no_result(output) {
        errors.over(
            output,
            format!(
                "the call itself can fail, so it must return a `Result`: write `-> Result<{}, \
                 idempotency::Error>`",
                text(output)
            ),
        );
        return;
    }
    match types::borrow_in(output) {
        Some(Borrow::Reference(reference)) => errors.over(
            reference,
            format!("the result is stored for the next caller, so it cannot borrow: return `{}`", types::owned_text(reference)),
        ),
        Some(Borrow::Lifetime(lifetime)) => errors.over(
            lifetime,
            "the result is stored for the next caller, so it cannot borrow: return an owned type, for example `String` or `Cow<'static, str>`",
        ),
        None => {}
    }
}

/// Rejects arguments that a detached body would borrow: it must own everything that it uses.
fn detached(detach: Span, function: &Function, errors: &mut Errors) {
    if let Output::Boxed { future, .. } = function.output()
        && matches!(types::borrow_in(future), Some(Borrow::Lifetime(_)))
    {
        errors.at(
            detach,
            "the future of this method borrows, so it cannot be detached: put the attribute on an inherent `async fn` that takes `self: Arc<Self>`, and call that one here",
        );
        return;
    }
    for argument in &function.signature.inputs {
        match argument {
            FnArg::Receiver(receiver) => detached_receiver(receiver, errors),
            FnArg::Typed(argument) => detached_argument(&argument.pat, &argument.ty, errors),
        }
    }
}

fn detached_receiver(receiver: &Receiver, errors: &mut Errors) {
    let borrows = match &receiver.kind {
        ReceiverKind::Value => false,
        ReceiverKind::Typed(_, of_type) => types::borrow_in(of_type).is_some(),
        _ => true,
    };
    if borrows {
        errors.over(
            receiver,
            "`detach` needs a body that owns what it uses: take `self: Arc<Self>` or `self`",
        );
    }
}

fn detached_argument(pattern: &Pat, of_type: &Type, errors: &mut Errors) {
    let owned = |errors: &mut Errors, of_type: &Type| {
        match types::borrow_in(of_type) {
        Some(Borrow::Reference(reference)) if types::is_static(reference) => {}
        Some(Borrow::Reference(reference)) => errors.over(
            reference,
            format!("`detach` needs a body that owns what it uses: take `{}` here", types::owned_text(reference)),
        ),
        Some(Borrow::Lifetime(lifetime)) => errors.over(
            lifetime,
            "`detach` needs a body that owns what it uses: take an owned type, for example `String`, or one with `'static` here",
        ),
        None => {}
    }
    };
    match unwrapped(of_type) {
        Type::Reference(reference) if reference.mutability.is_some() => errors.over(
            reference,
            format!(
                "`detach` needs a body that owns what it uses: take `{}` and return the changed value",
                types::owned_text(reference)
            ),
        ),
        Type::Reference(reference) if types::is_static(reference) => {}
        Type::Reference(reference) => {
            if argument_name(pattern).is_none() && !matches!(pattern, Pat::Wild(_)) {
                errors.over(
                    pattern,
                    format!(
                        "`detach` copies what this borrows, so it needs a name: write `value: {}`",
                        text(reference)
                    ),
                );
            }
            owned(errors, &reference.elem);
        }
        other => owned(errors, other),
    }
}
