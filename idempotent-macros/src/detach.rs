//! `detach`: what the body borrows is copied, so that the body can go on without its caller.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Attribute, FnArg, Pat, PatType, Receiver, ReceiverKind, Signature, Type};

use crate::func::{Body, Function, argument_name, conditions, mentions};
use crate::types::{is_static, unwrapped};

/// An argument of type `&T`, which the body gets as a reference to a copy.
pub(crate) struct Copied<'a> {
    name: &'a Ident,
    /// The body may assign to the name.
    mutability: Option<syn::Token![mut]>,
    /// `#[cfg]` on the argument goes for its copy as well.
    attributes: Vec<&'a Attribute>,
    place: Span,
}

/// The arguments that the body uses and cannot take along.
pub(crate) fn copied<'a>(function: &'a Function, body: &Body) -> Vec<Copied<'a>> {
    typed(&function.signature)
        .filter(|argument| is_lent(&argument.ty))
        .filter_map(|argument| {
            let name = argument_name(&argument.pat).filter(|name| mentions(&body.statements, name))?;
            Some(Copied {
                name,
                mutability: mutability(&argument.pat),
                attributes: conditions(argument).collect(),
                place: argument.ty.span(),
            })
        })
        .collect()
}

impl Copied<'_> {
    fn local(&self) -> Ident {
        format_ident!("__copied_{}", self.name, span = Span::mixed_site())
    }

    /// The copy, made before the body's task.
    pub(crate) fn copy(&self, private: &TokenStream) -> TokenStream {
        let Self { name, attributes, place, .. } = self;
        let local = self.local();
        quote_spanned!(*place=> #(#attributes)* let #local = #private::copied(#name);)
    }

    /// The argument as the body knows it.
    pub(crate) fn borrow(&self) -> TokenStream {
        let Self { name, mutability, attributes, .. } = self;
        let local = self.local();
        quote!(#(#attributes)* #[allow(unused_variables)] let #mutability #name = &*#local;)
    }
}

/// One check for each argument that moves into the task, so that a mistake is reported at the argument.
pub(crate) fn checks(
    function: &Function,
    is_used: impl Fn(&Ident) -> bool,
    private: &TokenStream,
) -> impl Iterator<Item = TokenStream> {
    function.signature.inputs.iter().filter_map(move |argument| {
        let (name, place, conditions) = match argument {
            FnArg::Receiver(Receiver { self_token, kind, .. }) => {
                let place = if let ReceiverKind::Typed(_, of_type) = kind { of_type.span() } else { self_token.span };
                (Ident::from(*self_token), place, Vec::new())
            }
            FnArg::Typed(argument) if matches!(unwrapped(&argument.ty), Type::Reference(_)) => return None,
            FnArg::Typed(argument) => {
                (argument_name(&argument.pat)?.clone(), argument.ty.span(), conditions(argument).collect())
            }
        };
        let reference = quote_spanned!(place=> &#name);
        is_used(&name).then(|| quote!(#(#conditions)* #private::assert_detachable(#reference);))
    })
}

/// The signature without `mut` on the arguments that the body gets anew: out here it would be unused.
pub(crate) fn signature(signature: &Signature) -> Signature {
    let mut signature = signature.clone();
    for argument in &mut signature.inputs {
        if let FnArg::Typed(argument) = argument
            && is_lent(&argument.ty)
            && let Pat::Ident(name) = &mut *argument.pat
        {
            name.mutability = None;
        }
    }
    signature
}

/// Whether the body gets a copy of what the argument borrows.
fn is_lent(of_type: &Type) -> bool {
    matches!(unwrapped(of_type), Type::Reference(reference) if !is_static(reference))
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
