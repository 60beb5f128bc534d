//! Properties of types that can be determined without resolving names.

use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::visit::Visit;
use syn::visit_mut::{self, VisitMut};
use syn::{
    AngleBracketedGenericArguments, AssocType, GenericArgument, Lifetime, PathArguments,
    PathSegment, ReturnType, Signature, Type, TypeFnPtr, TypeImplTrait, TypeParamBound,
    TypeReference,
};

/// The kind of value that a function returns.
pub(crate) enum Output<'a> {
    /// `async fn … -> R`.
    Async(&'a Type),
    /// `fn … -> Pin<Box<dyn Future<Output = R>>>`, as `#[async_trait]` leaves it.
    Boxed { future: &'a Type, output: &'a Type },
    /// `fn … -> impl Future<Output = R>`.
    ImplFuture(&'a Type),
    /// `async fn` without a return type.
    Nothing,
    /// Something that is not awaited.
    NotAsync,
}

impl<'a> Output<'a> {
    pub(crate) fn of(signature: &'a Signature) -> Self {
        match (&signature.asyncness, &signature.output) {
            (Some(_), ReturnType::Type(_, output)) => Self::Async(output),
            (Some(_), ReturnType::Default) => Self::Nothing,
            (None, ReturnType::Type(_, future)) => {
                if let Some(output) = boxed_output(future) {
                    Self::Boxed { future, output }
                } else if let Type::ImplTrait(future) = unwrapped(future)
                    && let Some(output) = output_of_bounds(&future.bounds)
                {
                    Self::ImplFuture(output)
                } else {
                    Self::NotAsync
                }
            }
            (None, ReturnType::Default) => Self::NotAsync,
        }
    }
}

/// Returns `R` of `Pin<Box<dyn Future<Output = R>>>` and of `BoxFuture<'_, R>`.
fn boxed_output(future: &Type) -> Option<&Type> {
    let segment = last_segment(future)?;
    if segment.ident == "BoxFuture" || segment.ident == "LocalBoxFuture" {
        return type_argument(segment);
    }
    let pinned = (segment.ident == "Pin").then(|| type_argument(segment)).flatten()?;
    let boxed =
        last_segment(pinned).filter(|segment| segment.ident == "Box").and_then(type_argument)?;
    match unwrapped(boxed) {
        Type::TraitObject(object) => output_of_bounds(&object.bounds),
        _ => None,
    }
}

fn output_of_bounds<'a>(bounds: impl IntoIterator<Item = &'a TypeParamBound>) -> Option<&'a Type> {
    bounds.into_iter().find_map(|bound| match bound {
        TypeParamBound::Trait(bound) => {
            let future = bound.path.segments.last().filter(|segment| segment.ident == "Future")?;
            arguments(future)?.args.iter().find_map(|argument| match argument {
                GenericArgument::AssocType(AssocType { ident, ty, .. }) if ident == "Output" => {
                    Some(ty)
                }
                _ => None,
            })
        }
        _ => None,
    })
}

fn arguments(segment: &PathSegment) -> Option<&AngleBracketedGenericArguments> {
    match &segment.arguments {
        PathArguments::AngleBracketed(arguments) => Some(arguments),
        _ => None,
    }
}

fn type_argument(segment: &PathSegment) -> Option<&Type> {
    arguments(segment)?.args.iter().find_map(|argument| match argument {
        GenericArgument::Type(argument) => Some(argument),
        _ => None,
    })
}

pub(crate) fn last_segment(of_type: &Type) -> Option<&PathSegment> {
    match unwrapped(of_type) {
        Type::Path(path) if path.qself.is_none() => path.path.segments.last(),
        _ => None,
    }
}

/// Strips the invisible delimiters of macro fragments, and parentheses.
pub(crate) fn unwrapped(mut of_type: &Type) -> &Type {
    loop {
        of_type = match of_type {
            Type::Group(group) => &group.elem,
            Type::Paren(paren) => &paren.elem,
            other => return other,
        };
    }
}

/// Returns true if the type cannot be a `Result`, whatever its names mean: an alias can be one.
pub(crate) fn is_surely_no_result(of_type: &Type) -> bool {
    const NO_RESULTS: [&str; 24] = [
        "bool", "char", "str", "u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32",
        "i64", "i128", "isize", "f32", "f64", "String", "Option", "Vec", "Box", "Arc", "HashMap",
        "BTreeMap",
    ];
    match unwrapped(of_type) {
        Type::Array(_)
        | Type::FnPtr(_)
        | Type::Never(_)
        | Type::Ptr(_)
        | Type::Slice(_)
        | Type::Tuple(_) => true,
        other => last_segment(other)
            .is_some_and(|segment| NO_RESULTS.iter().any(|name| segment.ident == name)),
    }
}

/// Returns true if the type looks like a value that can be used directly as a key.
pub(crate) fn is_plain_value(of_type: &Type) -> bool {
    const PLAIN: [&str; 16] = [
        "bool", "char", "str", "String", "Uuid", "u8", "u16", "u32", "u64", "u128", "usize", "i32",
        "i64", "i128", "isize", "i16",
    ];
    match unwrapped(of_type) {
        Type::Reference(reference) => is_plain_value(&reference.elem),
        other => last_segment(other).is_some_and(|segment| {
            PLAIN.iter().any(|name| segment.ident == name)
                || segment.ident.to_string().ends_with("Id")
        }),
    }
}

pub(crate) fn mentions_impl(of_type: &Type) -> bool {
    struct Finder(bool);
    impl Visit<'_> for Finder {
        fn visit_type_impl_trait(&mut self, _: &TypeImplTrait) {
            self.0 = true;
        }
    }
    let mut finder = Finder(false);
    finder.visit_type(of_type);
    finder.0
}

/// A part of a type that borrows.
pub(crate) enum Borrow<'a> {
    Reference(&'a TypeReference),
    Lifetime(&'a Lifetime),
}

/// Returns the first part of the type that borrows. `'static` lifetimes do not, references do.
pub(crate) fn borrow_in(of_type: &Type) -> Option<Borrow<'_>> {
    struct Finder<'a>(Option<Borrow<'a>>);
    impl<'a> Visit<'a> for Finder<'a> {
        fn visit_type_reference(&mut self, reference: &'a TypeReference) {
            self.0.get_or_insert(Borrow::Reference(reference));
        }
        fn visit_lifetime(&mut self, lifetime: &'a Lifetime) {
            if lifetime.ident != "static" {
                self.0.get_or_insert(Borrow::Lifetime(lifetime));
            }
        }
        // The arguments of a function pointer are not held by the value.
        fn visit_type_fn_ptr(&mut self, _: &'a TypeFnPtr) {}
        fn visit_parenthesized_generic_arguments(
            &mut self,
            _: &'a syn::ParenthesizedGenericArguments,
        ) {
        }
    }
    let mut finder = Finder(None);
    finder.visit_type(of_type);
    finder.0
}

pub(crate) fn is_static(reference: &TypeReference) -> bool {
    reference.lifetime.as_ref().is_some_and(|lifetime| lifetime.ident == "static")
}

/// Returns the type that owns what `reference` borrows, for messages.
pub(crate) fn owned_text(reference: &TypeReference) -> String {
    match unwrapped(&reference.elem) {
        Type::Slice(slice) => format!("Vec<{}>", text(&slice.elem)),
        other => match last_segment(other) {
            Some(segment) if segment.ident == "str" => "String".to_owned(),
            Some(segment) if segment.ident == "Path" => "PathBuf".to_owned(),
            _ => text(other),
        },
    }
}

/// Returns the type with `impl Trait` erased: inside a body, the compiler infers it.
pub(crate) fn erased(of_type: &Type) -> Type {
    struct Eraser;
    impl VisitMut for Eraser {
        fn visit_type_mut(&mut self, of_type: &mut Type) {
            if let Type::ImplTrait(erased) = of_type {
                let span = syn::spanned::Spanned::span(erased);
                *of_type = Type::Infer(syn::TypeInfer {
                    attrs: Vec::new(),
                    underscore_token: syn::Token![_](span),
                });
            } else {
                visit_mut::visit_type_mut(self, of_type);
            }
        }
    }
    let mut erased = of_type.clone();
    Eraser.visit_type_mut(&mut erased);
    erased
}

/// Returns the type with every lifetime except `'static` left to the compiler, for the return type
/// of a closure.
pub(crate) fn without_lifetimes(of_type: &Type) -> Type {
    struct Eraser;
    impl VisitMut for Eraser {
        fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
            if lifetime.ident != "static" {
                lifetime.ident = syn::Ident::new("_", lifetime.ident.span());
            }
        }
    }
    let mut erased = of_type.clone();
    Eraser.visit_type_mut(&mut erased);
    erased
}

/// Returns the source text of a type, for messages.
pub(crate) fn text(of_type: impl ToTokens) -> String {
    let tokens: TokenStream = of_type.into_token_stream();
    let mut text = tokens.to_string();
    for (loose, tight) in [
        (" < ", "<"),
        (" <", "<"),
        ("< ", "<"),
        (" >", ">"),
        (" ,", ","),
        (" :: ", "::"),
        ("& ", "&"),
        ("' ", "'"),
    ] {
        text = text.replace(loose, tight);
    }
    text
}
