//! The instance of a generic function that makes a call.

use std::any::{TypeId, type_name};

/// A function as compiled for one set of types and constants. These include the parameters of its
/// `impl` and of the implementor of its trait, which an attribute on the function cannot see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instance {
    id: TypeId,
    /// For people: the texts of types are not unique.
    path: &'static str,
}

impl PartialEq for Instance {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Instance {
    /// Returns the instance in which a closure of type `W` is written. The type of a closure has
    /// all parameters around it, also those that it does not use; lifetimes do not count.
    pub(crate) fn of<W>() -> Self {
        Self { id: typeid::of::<W>(), path: type_name::<W>() }
    }

    /// The path of the function around the closure.
    pub(crate) fn function(&self) -> &'static str {
        let mut path = self.path;
        while let Some(outer) = path.strip_suffix("::{{closure}}") {
            path = outer;
        }
        path
    }

    /// Returns true if the function is certainly one of several instances that differ in types or
    /// constants.
    ///
    /// Reads the text of the path, whose format the compiler does not guarantee. Where it shows
    /// nothing, instances are distinguished when the second one is called.
    pub(crate) fn has_parameters(&self) -> bool {
        has_parameters(self.function())
    }
}

/// Returns true if a name in `path` has an argument that is a type or a constant: `Repo<u8>`, but
/// not `Repo<'_>` or `<A as B>`, nor `<impl Card>`, by which the compiler names an `impl` in
/// another module than its type.
fn has_parameters(path: &str) -> bool {
    let path = match path.rsplit_once("::") {
        // An item in the body of another function has no parameters but its own: outer parameters
        // do not create further instances of it.
        Some((around, name)) if !name.ends_with('>') && !around.ends_with('>') => return false,
        _ => path,
    };
    path.match_indices('<').any(|(at, _)| {
        let is_list = path[..at]
            .ends_with(|before: char| before.is_alphanumeric() || matches!(before, '_' | ':'));
        // Up to the next bracket is enough: a nested list has a name before it.
        let arguments = path[at + 1..].split(['<', '>']).next().unwrap_or_default();
        let is_block = path[..at].ends_with("::") && arguments.starts_with("impl ");
        is_list
            && !is_block
            && arguments
                .split(',')
                .map(str::trim)
                .any(|one| !is_lifetime(one) && !matches!(one, "" | "_"))
    })
}

/// Returns true if `argument` is `'_`, and not `'x'`, or a piece of `'<'` or `','`.
fn is_lifetime(argument: &str) -> bool {
    argument.strip_prefix('\'').is_some_and(|name| !name.is_empty() && !name.contains('\''))
}

#[cfg(test)]
mod tests {
    use super::has_parameters;

    #[test]
    fn types_and_constants_are_parameters() {
        for path in [
            "shop::Repo<u8>::save",
            "shop::Repo<'_, u8>::save",
            "shop::Repo<[u8; 3]>::save",
            "shop::Repo<(u8, u8)>::save",
            "shop::Repo<3>::save",
            "shop::Repo<'x'>::save",
            "shop::Repo<'_, 'x'>::save",
            "shop::Repo<'<'>::save",
            "shop::Repo<'>'>::save",
            "shop::Repo<','>::save",
            "shop::Repo<'\\''>::save",
            "shop::Repo<u8>::save<'_>",
            "shop::<impl shop::types::Repo<u8>>::save",
            "shop::<impl shop::types::Repo<'_, u8>>::save",
            "shop::<impl shop::types::Handle<shop::Order> for shop::types::Card>::handle",
            "shop::<impl shop::types::Charge for shop::types::Repo<u8>>::charge",
            "<shop::Repo<u8> as shop::Charge>::charge",
            "<shop::Card as shop::Handle<shop::Order>>::handle",
            "<shop::Card as shop::Handle<alloc::vec::Vec<u8>>>::handle",
        ] {
            assert!(has_parameters(path), "{path}");
        }
    }

    #[test]
    fn lifetimes_and_implementors_are_none() {
        for path in [
            "shop::charge",
            "shop::Card::charge",
            "shop::Orders<'_>::charge",
            "shop::Orders<'_, '_>::charge",
            "<shop::Card as shop::Charge>::charge",
            "<shop::Orders<'_> as shop::Charge>::charge",
            "<dyn shop::Charge>::charge",
            "<[u8; 3] as shop::Charge>::charge",
            // An `impl` in another module than its type, in a constant, or in a function.
            "shop::<impl shop::types::Card>::charge",
            "shop::<impl shop::types::Orders<'_>>::charge",
            "shop::<impl shop::types::Charge for shop::types::Card>::charge",
            "shop::_::<impl shop::types::Card>::charge",
            "shop::install::<impl shop::types::Card>::charge",
            // A function inside a generic one has no parameters of its own.
            "shop::Repo<_>::save::inner",
            "shop::Repo<N>::save::{{closure}}::inner",
            "shop::Repo<alloc::vec::Vec<_>>::save::inner",
            "<shop::Card as shop::Handle<shop::Order>>::handle::{{closure}}::inner",
        ] {
            assert!(!has_parameters(path), "{path}");
        }
    }
}
