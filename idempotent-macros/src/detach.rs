//! `detach`: copies what the body borrows, so that the body can continue without its caller.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Attribute, FnArg, Pat, PatType, Receiver, ReceiverKind, Signature, Type, parse_quote};

use crate::func::{Body, Function, argument_name, bound_names, conditions, mentions};
use crate::required;
use crate::types::{is_static, unwrapped};

/// An argument of type `&T`, which the body gets as a reference to a copy.
pub(crate) struct Copied<'a> {
    name: &'a Ident,
    /// Present if the body may assign to the name.
    mutability: Option<syn::Token![mut]>,
    /// The `#[cfg]`s of the argument, which apply to its copy as well.
    attributes: Vec<&'a Attribute>,
    place: &'a Type,
}

/// Returns the arguments that the body uses but cannot own.
pub(crate) fn copied<'a>(function: &'a Function, body: &Body) -> Vec<Copied<'a>> {
    typed(&function.signature)
        .filter(|argument| is_lent(&argument.ty))
        .filter_map(|argument| {
            let name =
                argument_name(&argument.pat).filter(|name| mentions(&body.statements, name))?;
            Some(Copied {
                name,
                mutability: mutability(&argument.pat),
                attributes: conditions(&argument.attrs).collect(),
                place: &argument.ty,
            })
        })
        .collect()
}

impl Copied<'_> {
    fn local(&self) -> Ident {
        format_ident!("__copied_{}", self.name, span = Span::mixed_site())
    }

    /// Returns the statement that creates the copy, before the body's task.
    pub(crate) fn copy(&self, private: &TokenStream) -> TokenStream {
        let Self { name, attributes, place, .. } = self;
        let local = self.local();
        let none = TokenStream::new();
        let assert = required::function(private, "DetachableCopy", &none, "assert", place);
        quote! {
            #(#attributes)* #assert(#name);
            #(#attributes)* let #local = #private::copied(#name);
        }
    }

    /// Returns the statement that binds the argument inside the body.
    pub(crate) fn borrow(&self) -> TokenStream {
        let Self { name, mutability, attributes, .. } = self;
        let local = self.local();
        quote!(#(#attributes)* #[allow(unused_variables)] let #mutability #name = &*#local;)
    }
}

/// Returns one check for each argument that moves into the task, so that a mistake is reported at
/// the argument.
pub(crate) fn checks(
    function: &Function,
    private: &TokenStream,
) -> impl Iterator<Item = TokenStream> {
    function.signature.inputs.iter().filter_map(move |argument| {
        let (name, place, conditions) = match argument {
            FnArg::Receiver(Receiver { self_token, kind, .. }) => {
                let place = if let ReceiverKind::Typed(_, of_type) = kind {
                    of_type.to_token_stream()
                } else {
                    self_token.to_token_stream()
                };
                (Ident::from(*self_token), place, Vec::new())
            }
            FnArg::Typed(argument) if !is_moved(&argument.ty) => return None,
            FnArg::Typed(argument) => {
                let place = argument.ty.to_token_stream();
                (
                    argument_name(&argument.pat)?.clone(),
                    place,
                    conditions(&argument.attrs).collect(),
                )
            }
        };
        let none = TokenStream::new();
        let assert = required::function(private, "Detachable", &none, "assert", &place);
        let lint = underscore_lint(&name);
        let (first, last) = required::ends(&place);
        let mut name = name;
        name.set_span(name.span().located_at(last));
        let reference = quote_spanned!(first=> &#name);
        Some(quote!(#(#conditions)* #lint #assert(#reference);))
    })
}

/// Moves an argument that is never mentioned into the task, where it may guard the body's work.
///
/// This counts as a use, and the compiler would no longer report a forgotten argument. So the name
/// is bound once more, in order to be reported like the argument: in a block of its own, where it
/// hides nothing from the body.
pub(crate) fn taken_along(attributes: &[Attribute], name: &Ident) -> TokenStream {
    let conditions = conditions(attributes);
    if is_never_reported(name) {
        let lint = underscore_lint(name);
        return quote!(#(#conditions)* #lint let _ = &#name;);
    }
    let levels = attributes.iter().filter(|attribute| is_level(attribute));
    quote!({ #(#conditions)* #(#levels)* let #name = &#name; })
}

/// Returns true if the compiler never reports the name as unused.
fn is_never_reported(name: &Ident) -> bool {
    name == "self" || name.to_string().starts_with('_')
}

/// Returns a lint level for a name like `_permit`: Clippy would report that it is used after all,
/// by the expansion.
fn underscore_lint(name: &Ident) -> Option<TokenStream> {
    name.to_string().starts_with('_').then(|| quote!(#[allow(clippy::used_underscore_binding)]))
}

/// Returns true if the attribute sets a lint level.
fn is_level(attribute: &Attribute) -> bool {
    ["allow", "warn", "deny", "forbid", "expect"]
        .iter()
        .any(|level| attribute.path().is_ident(level))
}

/// Names each argument `_` that is passed by value, which could not move into the task otherwise.
pub(crate) fn name_all(signature: &mut Signature) {
    for (position, argument) in signature.inputs.iter_mut().enumerate() {
        if let FnArg::Typed(argument) = argument
            && is_moved(&argument.ty)
            && let Some(wildcard) = wildcard(&mut argument.pat)
        {
            let place = Span::mixed_site().located_at(wildcard.span());
            let name = format_ident!("__argument_{position}", span = place);
            *wildcard = parse_quote!(#name);
        }
    }
}

fn wildcard(pattern: &mut Pat) -> Option<&mut Pat> {
    match pattern {
        Pat::Wild(_) => Some(pattern),
        Pat::Paren(paren) => wildcard(&mut paren.pat),
        _ => None,
    }
}

/// Removes from the signature what concerns the arguments in the body: `mut` on those that are
/// bound again there would be unused out here, and `#[expect]` on those that are reported there as
/// unused would not be fulfilled.
pub(crate) fn signature(signature: &Signature, is_used: impl Fn(&Ident) -> bool) -> Signature {
    let is_reported = |name: &Ident| !is_used(name) && !is_never_reported(name);
    let mut signature = signature.clone();
    for argument in &mut signature.inputs {
        let FnArg::Typed(argument) = argument else { continue };
        if is_lent(&argument.ty) {
            if let Pat::Ident(name) = &mut *argument.pat {
                name.mutability = None;
            }
        } else if is_moved(&argument.ty) && bound_names(&argument.pat).into_iter().any(is_reported)
        {
            argument.attrs.retain(|attribute| !attribute.path().is_ident("expect"));
        }
    }
    signature
}

/// Returns true if the body gets a copy of the borrowed value.
fn is_lent(of_type: &Type) -> bool {
    matches!(unwrapped(of_type), Type::Reference(reference) if !is_static(reference))
}

/// Returns true if the argument itself moves into the task, with everything that it owns.
fn is_moved(of_type: &Type) -> bool {
    !matches!(unwrapped(of_type), Type::Reference(_))
}

fn typed(signature: &Signature) -> impl Iterator<Item = &PatType> {
    signature.inputs.iter().filter_map(|argument| match argument {
        FnArg::Typed(argument) => Some(argument),
        FnArg::Receiver(_) => None,
    })
}

fn mutability(pattern: &Pat) -> Option<syn::Token![mut]> {
    match pattern {
        Pat::Ident(name) => name.mutability,
        Pat::Paren(paren) => mutability(&paren.pat),
        _ => None,
    }
}
