//! Reads the function under the attribute. Its body is not looked into: it stays the tokens that the user wrote.

use proc_macro2::{Delimiter, Group, Span, TokenStream, TokenTree};
use quote::quote;
use syn::parse::{Parse, ParseStream, Parser};
use syn::{
    Attribute, FnArg, GenericParam, Ident, Pat, PatType, Receiver, ReceiverKind, ReturnType, Signature, Token, Type,
    Visibility,
};

use crate::types::{self, Output, unwrapped};

pub(crate) struct Function {
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) visibility: Visibility,
    pub(crate) signature: Signature,
    /// `None` for a method that a trait only declares.
    pub(crate) body: Option<Body>,
}

pub(crate) struct Body {
    /// `#![…]` at the beginning of the body.
    pub(crate) inner_attributes: TokenStream,
    pub(crate) statements: TokenStream,
    /// The place of the braces.
    pub(crate) span: Span,
}

impl Function {
    /// The function as it was, without what was reported and the compiler would report again.
    pub(crate) fn unexpanded(mut self) -> TokenStream {
        self.attributes.retain(|attribute| !is_idempotent(attribute));
        if self.signature.asyncness.is_some() {
            self.signature.constness = None;
        }
        self.unchanged()
    }

    pub(crate) fn unchanged(&self) -> TokenStream {
        let Self { attributes, visibility, signature, body } = self;
        let body = if let Some(body) = body {
            body.braced(&body.inner_attributes, &body.statements).into()
        } else {
            quote!(;)
        };
        quote!(#(#attributes)* #visibility #signature #body)
    }

    pub(crate) fn output(&self) -> Output<'_> {
        Output::of(&self.signature)
    }

    pub(crate) fn return_type(&self) -> Option<&Type> {
        match &self.signature.output {
            ReturnType::Default => None,
            ReturnType::Type(_, output) => Some(output),
        }
    }

    /// Whether one function in the source is many at run time.
    pub(crate) fn is_generic(&self) -> bool {
        let parameters = self.signature.generics.params.iter();
        let has_parameters = parameters.into_iter().any(|parameter| !matches!(parameter, GenericParam::Lifetime(_)));
        has_parameters || self.arguments().any(|(_, of_type)| types::mentions_impl(of_type))
    }

    /// The arguments but `self`.
    pub(crate) fn arguments(&self) -> impl Iterator<Item = (&Pat, &Type)> {
        self.signature.inputs.iter().filter_map(|argument| match argument {
            FnArg::Typed(argument) => Some((&*argument.pat, &*argument.ty)),
            FnArg::Receiver(_) => None,
        })
    }

    /// The arguments that move into the body, with the `#[cfg]`s that they are under.
    pub(crate) fn moved_arguments(&self) -> impl Iterator<Item = (Vec<&Attribute>, Ident)> {
        self.signature.inputs.iter().filter_map(|argument| match argument {
            FnArg::Receiver(Receiver { kind: ReceiverKind::Reference(..), .. }) => None,
            FnArg::Receiver(receiver) => Some((Vec::new(), receiver.self_token.into())),
            FnArg::Typed(argument) if matches!(unwrapped(&argument.ty), Type::Reference(_)) => None,
            FnArg::Typed(argument) => {
                argument_name(&argument.pat).map(|name| (conditions(argument).collect(), name.clone()))
            }
        })
    }

    /// A key that this function could have, for messages.
    pub(crate) fn example_key(&self) -> String {
        let named = self.arguments().find_map(|(pattern, of_type)| Some((argument_name(pattern)?, of_type)));
        match named {
            Some((name, of_type)) if types::is_plain_value(of_type) => name.to_string(),
            Some((name, _)) => format!("{name}.id"),
            None if self.signature.receiver().is_some() => "self.id".to_owned(),
            None => "\"once\"".to_owned(),
        }
    }
}

/// Whether the attribute is another `#[idempotent]`.
pub(crate) fn is_idempotent(attribute: &Attribute) -> bool {
    attribute.path().segments.last().is_some_and(|segment| segment.ident == "idempotent")
}

/// The name that a simple pattern gives to its argument.
pub(crate) fn argument_name(pattern: &Pat) -> Option<&Ident> {
    match pattern {
        Pat::Ident(name) if name.subpat.is_none() && name.by_ref.is_none() => Some(&name.ident),
        Pat::Paren(paren) => argument_name(&paren.pat),
        _ => None,
    }
}

/// The `#[cfg]`s on an argument: what the expansion says about it is under the same.
pub(crate) fn conditions(argument: &PatType) -> impl Iterator<Item = &Attribute> {
    argument.attrs.iter().filter(|attribute| attribute.path().is_ident("cfg"))
}

impl Body {
    /// Whether the name is somewhere in the body.
    pub(crate) fn mentions(&self, name: &Ident) -> bool {
        fn mentioned(tokens: TokenStream, name: &Ident) -> bool {
            tokens.into_iter().any(|token| match token {
                TokenTree::Ident(ident) => ident == *name,
                TokenTree::Group(group) => mentioned(group.stream(), name),
                _ => false,
            })
        }
        mentioned(self.statements.clone(), name)
    }

    /// The user's braces with other contents. Braces from elsewhere would silence lints about the whole function.
    pub(crate) fn braced(&self, before: &TokenStream, contents: &TokenStream) -> TokenTree {
        braces(self.span, quote!(#before #contents))
    }

    /// Braces of ours in the place of the user's, around the user's statements after some of ours. Clippy must not
    /// take all of them for the user's: an item at the beginning of the body would come after statements.
    pub(crate) fn following(&self, statements: &TokenStream) -> TokenTree {
        let following = &self.statements;
        braces(Span::call_site().located_at(self.span), quote!(#statements #following))
    }
}

fn braces(span: Span, contents: TokenStream) -> TokenTree {
    let mut group = Group::new(Delimiter::Brace, contents);
    group.set_span(span);
    group.into()
}

impl Parse for Function {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let attributes = input.call(Attribute::parse_outer)?;
        let visibility = input.parse()?;
        let signature = input.parse()?;
        let body = match input.parse::<Option<Token![;]>>()? {
            Some(_) => None,
            None => Some(input.parse()?),
        };
        Ok(Self { attributes, visibility, signature, body })
    }
}

impl Parse for Body {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let group = match input.parse()? {
            TokenTree::Group(group) => visible(group),
            other => return Err(syn::Error::new(other.span(), "expected the body of the function")),
        };
        let split = |input: ParseStream| {
            let inner_attributes = input.call(Attribute::parse_inner)?;
            Ok((quote!(#(#inner_attributes)*), input.parse()?))
        };
        let (inner_attributes, statements) = split.parse2(group.stream())?;
        Ok(Self { inner_attributes, statements, span: group.span() })
    }
}

/// The braces of a `$body:block`, which are inside of invisible delimiters.
fn visible(group: Group) -> Group {
    if group.delimiter() == Delimiter::None
        && let Some(TokenTree::Group(inner)) = group.stream().into_iter().next()
    {
        return visible(inner);
    }
    group
}
