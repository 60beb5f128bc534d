//! Parses the function under the attribute. Its body is not parsed: it stays the tokens that the
//! user wrote.

use proc_macro2::{Delimiter, Group, Span, TokenStream, TokenTree};
use quote::quote;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream, Parser};
use syn::visit::{self, Visit};
use syn::{
    Attribute, FnArg, GenericParam, Ident, Pat, PatIdent, Receiver, ReceiverKind, ReturnType,
    Signature, Token, Type, Visibility,
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
    /// The `#![…]` at the beginning of the body.
    pub(crate) inner_attributes: TokenStream,
    pub(crate) statements: TokenStream,
    /// The span of the braces.
    pub(crate) span: Span,
}

impl Function {
    /// Returns the original function, without the parts that were reported and that the compiler
    /// would report again.
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

    /// Returns true if one function in the source can be several at run time.
    pub(crate) fn is_generic(&self) -> bool {
        let parameters = self.signature.generics.params.iter();
        let has_parameters =
            parameters.into_iter().any(|parameter| !matches!(parameter, GenericParam::Lifetime(_)));
        has_parameters || self.arguments().any(|(_, of_type)| types::mentions_impl(of_type))
    }

    /// The arguments except `self`.
    pub(crate) fn arguments(&self) -> impl Iterator<Item = (&Pat, &Type)> {
        self.signature.inputs.iter().filter_map(|argument| match argument {
            FnArg::Typed(argument) => Some((&*argument.pat, &*argument.ty)),
            FnArg::Receiver(_) => None,
        })
    }

    /// Returns true if the body may assign to one of its arguments.
    pub(crate) fn has_mutable_argument(&self) -> bool {
        struct Finder(bool);
        impl Visit<'_> for Finder {
            fn visit_pat_ident(&mut self, pattern: &PatIdent) {
                self.0 |= pattern.mutability.is_some();
                visit::visit_pat_ident(self, pattern);
            }
        }
        let mut finder =
            Finder(self.signature.receiver().is_some_and(|receiver| receiver.mutability.is_some()));
        self.arguments().for_each(|(pattern, _)| finder.visit_pat(pattern));
        finder.0
    }

    /// Returns the names that arguments by value are bound to, with the attributes of their
    /// arguments.
    pub(crate) fn moved_names(&self) -> Vec<(&[Attribute], Ident)> {
        let mut names = Vec::new();
        for argument in &self.signature.inputs {
            match argument {
                FnArg::Receiver(Receiver { kind: ReceiverKind::Reference(..), .. }) => {}
                FnArg::Receiver(receiver) => names.push((&[][..], receiver.self_token.into())),
                FnArg::Typed(argument) if matches!(unwrapped(&argument.ty), Type::Reference(_)) => {
                }
                FnArg::Typed(argument) => {
                    let bound = bound_names(&argument.pat).into_iter();
                    names.extend(bound.map(|name| (&*argument.attrs, name.clone())));
                }
            }
        }
        names
    }

    /// Returns all names that arguments are bound to, including `self`.
    pub(crate) fn names(&self) -> Vec<Ident> {
        let receiver = self.signature.receiver().map(|receiver| receiver.self_token.into());
        let bound = self.arguments().flat_map(|(pattern, _)| bound_names(pattern)).cloned();
        receiver.into_iter().chain(bound).collect()
    }

    /// Returns a key that this function could have, for messages.
    pub(crate) fn example_key(&self) -> String {
        let named = self
            .arguments()
            .find_map(|(pattern, of_type)| Some((argument_name(pattern)?, of_type)));
        match named {
            Some((name, of_type)) if types::is_plain_value(of_type) => name.to_string(),
            Some((name, _)) => format!("{name}.id"),
            None if self.signature.receiver().is_some() => "self.id".to_owned(),
            None => "\"once\"".to_owned(),
        }
    }
}

/// Returns true if the attribute is another `#[idempotent]`.
pub(crate) fn is_idempotent(attribute: &Attribute) -> bool {
    attribute.path().segments.last().is_some_and(|segment| segment.ident == "idempotent")
}

/// Returns the name that a simple pattern binds.
pub(crate) fn argument_name(pattern: &Pat) -> Option<&Ident> {
    match pattern {
        Pat::Ident(name) if name.subpat.is_none() && name.by_ref.is_none() => Some(&name.ident),
        Pat::Paren(paren) => argument_name(&paren.pat),
        _ => None,
    }
}

/// Returns all names that a pattern binds. A name in capitals may be a constant or a unit type
/// instead, which cannot be distinguished here, and which can have the name of an argument.
pub(crate) fn bound_names(pattern: &Pat) -> Vec<&Ident> {
    struct Finder<'a>(Vec<&'a Ident>);
    impl<'a> Visit<'a> for Finder<'a> {
        fn visit_pat_ident(&mut self, pattern: &'a PatIdent) {
            self.0.push(&pattern.ident);
            visit::visit_pat_ident(self, pattern);
        }
    }
    let mut finder = Finder(Vec::new());
    finder.visit_pat(pattern);
    finder.0
}

/// Returns true if the tokens use the name. Fields and methods of other values do not count, but
/// uses in a text like `"{name}"` or `"{:name$}"` do.
pub(crate) fn mentions(tokens: &TokenStream, name: &Ident) -> bool {
    let in_text = [format!("{{{}", name.unraw()), format!("{}$", name.unraw())];
    uses(tokens, name, &|text| in_text.iter().any(|part| text.contains(part)))
}

/// Returns true if the tokens of an attribute use the name. In the text of a template every word
/// between braces counts: `"{ name.id() }"` and `"{Kind::of(&name)}"`.
pub(crate) fn mentions_in_templates(tokens: &TokenStream, name: &Ident) -> bool {
    let word = name.unraw().to_string();
    uses(tokens, name, &|text| {
        let mut depth = 0_usize;
        let is_part = |character: char| character.is_alphanumeric() || character == '_';
        text.split_inclusive(|character| !is_part(character)).any(|part| {
            let is_word = depth > 0 && part.trim_end_matches(|it| !is_part(it)) == word;
            depth = match part.chars().next_back() {
                Some('{') => depth + 1,
                Some('}') => depth.saturating_sub(1),
                _ => depth,
            };
            is_word
        })
    })
}

fn uses(tokens: &TokenStream, name: &Ident, is_in_text: &dyn Fn(&str) -> bool) -> bool {
    let name = &name.unraw();
    let mut dots = 0;
    for token in tokens.clone() {
        let is_mentioned = match &token {
            TokenTree::Ident(ident) => ident.unraw() == *name && dots != 1,
            TokenTree::Group(group) => uses(&group.stream(), name, is_in_text),
            TokenTree::Literal(literal) => is_in_text(&literal.to_string()),
            TokenTree::Punct(_) => false,
        };
        if is_mentioned {
            return true;
        }
        let is_dot = matches!(&token, TokenTree::Punct(punct) if punct.as_char() == '.');
        dots = if is_dot { dots + 1 } else { 0 };
    }
    false
}

/// Returns the `#[cfg]`s on an argument, which also apply to everything that the expansion
/// generates for it.
pub(crate) fn conditions(attributes: &[Attribute]) -> impl Iterator<Item = &Attribute> {
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg"))
}

impl Body {
    /// Returns the user's braces with other contents. Braces from elsewhere would silence lints
    /// about the whole function.
    pub(crate) fn braced(&self, before: &TokenStream, contents: &TokenStream) -> TokenTree {
        braces(self.span, quote!(#before #contents))
    }

    /// Returns generated braces in place of the user's, around generated statements followed by the
    /// user's. Clippy must not attribute all of them to the user: an item at the beginning of the
    /// body would appear to come after statements.
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
            other => {
                return Err(syn::Error::new(other.span(), "expected the body of the function"));
            }
        };
        let split = |input: ParseStream| {
            let inner_attributes = input.call(Attribute::parse_inner)?;
            Ok((quote!(#(#inner_attributes)*), input.parse()?))
        };
        let (inner_attributes, statements) = split.parse2(group.stream())?;
        Ok(Self { inner_attributes, statements, span: group.span() })
    }
}

/// Returns the braces of a `$body:block`, which are inside invisible delimiters.
fn visible(group: Group) -> Group {
    if group.delimiter() == Delimiter::None
        && let Some(TokenTree::Group(inner)) = group.stream().into_iter().next()
    {
        return visible(inner);
    }
    group
}

#[cfg(test)]
mod tests {
    use proc_macro2::{Ident, Span};

    use super::{mentions, mentions_in_templates};

    #[test]
    fn a_name_is_mentioned_where_it_is_a_variable() {
        let name = Ident::new("id", Span::call_site());
        let mentioned = |source: &str| mentions(&source.parse().unwrap(), &name);
        for source in [
            "id",
            "f(id)",
            "{ [id.x] }",
            "0..id",
            "format!(\"{id}\")",
            "format!(\"{id:?}\")",
            "&id",
            "a.f(id)",
            "r#id",
            "\"{0:>id$}\"",
        ] {
            assert!(mentioned(source), "{source}");
        }
        for source in ["order.id", "order.id()", "f(order . id)", "\"id\"", "ids", "\"{ids }\".id"]
        {
            assert_eq!(mentioned(source), source.contains("{id"), "{source}");
        }
    }

    #[test]
    fn a_template_mentions_a_name_anywhere_in_its_values() {
        let name = Ident::new("id", Span::call_site());
        let mentioned = |source: &str| mentions_in_templates(&source.parse().unwrap(), &name);
        for source in ["\"{id}\"", "\"a:{ id.x() }\"", "\"{f(&id)}:{b}\"", "\"{a}{(id)}\"", "id"] {
            assert!(mentioned(source), "{source}");
        }
        for source in ["\"id\"", "\"{ids}\"", "\"{a} id {b}\"", "\"{my_id}id\"", "order.id"] {
            assert!(!mentioned(source), "{source}");
        }
    }
}
