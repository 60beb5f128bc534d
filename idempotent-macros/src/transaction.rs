//! `tx`: claim, body and record share the user's transaction.

use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Expr, Pat, PatIdent, Type, UnOp};

use crate::args::plain;
use crate::errors::Errors;
use crate::func::{Body, Function, mentions};
use crate::types::{Output, last_segment, text, unwrapped};

/// Methods without arguments that only borrow their receiver.
const LENDING: [&str; 2] = ["as_mut", "deref_mut"];

/// Parses the value of `tx`, which is borrowed before the body and again after it.
pub(crate) fn parse(value: Expr, errors: &mut Errors) -> Option<Expr> {
    if let Expr::Reference(reference) = plain(&value)
        && reference.mutability.is_none()
    {
        let place = reference.expr.to_token_stream();
        errors.over(
            &value,
            format!("a transaction is changed by what runs in it: write `tx = &mut {place}`"),
        );
        return None;
    }
    if !can_be_borrowed_again(&value) {
        errors.over(
            &value,
            "the transaction is borrowed before the body and again after it, so it cannot be \
             created here: bind it to a variable first, and pass the variable, `tx = tx`",
        );
        return None;
    }
    Some(value)
}

/// Returns true if the expression denotes the same place each time it is evaluated.
fn can_be_borrowed_again(value: &Expr) -> bool {
    match plain(value) {
        Expr::Path(_) | Expr::Lit(_) => true,
        Expr::Field(field) => can_be_borrowed_again(&field.base),
        Expr::Reference(reference) => can_be_borrowed_again(&reference.expr),
        Expr::Unary(unary) => {
            matches!(unary.op, UnOp::Deref(_)) && can_be_borrowed_again(&unary.expr)
        }
        Expr::Index(index) => {
            can_be_borrowed_again(&index.expr) && can_be_borrowed_again(&index.index)
        }
        Expr::MethodCall(call) => {
            let lends = LENDING.iter().any(|method| call.method == method) && call.args.is_empty();
            lends && can_be_borrowed_again(&call.receiver)
        }
        _ => false,
    }
}

/// Returns the transaction, borrowed for one step. `lend` is the path of the function that requires
/// its type.
pub(crate) fn borrowed(tx: &Expr, lend: &TokenStream) -> TokenStream {
    match plain(tx) {
        reference @ Expr::Reference(_) => quote_spanned!(tx.span()=> &mut #lend(#reference)),
        place => quote_spanned!(tx.span()=> &mut #lend(&mut *#place)),
    }
}

/// Reports an argument that is the transaction but is not passed as a mutable reference.
pub(crate) fn check(tx: &Expr, function: &Function, errors: &mut Errors) {
    if let Some((_, of_type)) = named(tx, function) {
        match unwrapped(of_type) {
            Type::Reference(reference) if reference.mutability.is_none() => {
                let lent = text(&reference.elem);
                errors.over(
                    of_type,
                    format!("a transaction is changed by what runs in it: take `&mut {lent}`"),
                );
            }
            owned if is_transaction(owned) => {
                let lent = text(owned);
                errors.over(
                    owned,
                    format!(
                        "the caller commits, so this function must borrow the transaction: take \
                         `&mut {lent}`"
                    ),
                );
            }
            _ => {}
        }
    }
    if let Output::Boxed { .. } = function.output()
        && lent_argument(tx, function).is_none()
        && errors.is_empty()
    {
        errors.over(
            tx,
            "the boxed future takes all that it uses, so the transaction must be an argument here: \
             take `tx: &mut Transaction<'_, Postgres>` and write `tx = tx`, or put the attribute \
             on an inherent `async fn` and call that one here",
        );
    }
}

/// Returns true if the type is certainly the transaction itself, which is rolled back when it is
/// dropped.
fn is_transaction(of_type: &Type) -> bool {
    let name = last_segment(of_type).map(|segment| &segment.ident);
    name.is_some_and(|name| name == "Transaction" || name == "OpenTransaction")
}

/// Returns the argument that is the transaction as a whole, if there is one.
fn named<'a>(tx: &Expr, function: &'a Function) -> Option<(&'a PatIdent, &'a Type)> {
    let tx = match plain(tx) {
        Expr::Reference(reference) => plain(&reference.expr),
        other => other,
    };
    let Expr::Path(path) = tx else { return None };
    let name = path.path.get_ident()?;
    function.arguments().find_map(|(pattern, of_type)| match pattern {
        Pat::Ident(pattern) if pattern.ident == *name => Some((pattern, of_type)),
        _ => None,
    })
}

/// Returns the argument of type `&mut _` that is the transaction, if there is one.
fn lent_argument<'a>(tx: &Expr, function: &'a Function) -> Option<&'a Ident> {
    let (pattern, of_type) = named(tx, function).filter(|_| matches!(plain(tx), Expr::Path(_)))?;
    let is_lent =
        matches!(unwrapped(of_type), Type::Reference(reference) if reference.mutability.is_some());
    (is_lent
        && pattern.by_ref.is_none()
        && pattern.mutability.is_none()
        && pattern.subpat.is_none())
    .then_some(&pattern.ident)
}

/// Generates the transaction's binding in the body. A body may move its argument, to
/// `query.execute(tx)` for example. This way it moves a loan, and the transaction remains available
/// for the record.
pub(crate) fn loan(tx: &Expr, function: &Function, body: &Body) -> Option<TokenStream> {
    let name = lent_argument(tx, function).filter(|name| mentions(&body.statements, name))?;
    Some(quote!(#[allow(unused_variables)] let #name = &mut *#name;))
}
