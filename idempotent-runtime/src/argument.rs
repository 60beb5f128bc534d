//! The arguments of a detached body. It outlives its caller, so it owns what it uses.

use std::borrow::Borrow;
use std::ops::Deref;

/// An argument that can move into the task of a detached body.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot move into the task of a detached body",
    label = "not `Send + 'static`",
    note = "take an owned type that is `Send`, `Arc` in place of `Rc` for example, or leave `detach` out"
)]
pub trait Detachable {
    /// Compiles if the argument can move into the task of a detached body.
    #[doc(hidden)]
    fn assert(_: &Self) {}
}

#[diagnostic::do_not_recommend]
impl<T: Send + 'static> Detachable for T {}

/// An argument of type `&T` that can be copied into the task of a detached body.
#[diagnostic::on_unimplemented(
    message = "`&{Self}` cannot be copied into the task of a detached body",
    label = "`{Self}` is not `Clone + Send + Sync + 'static`",
    note = "derive `Clone`, or take `Arc<{Self}>`, or leave `detach` out"
)]
pub trait DetachableCopy {
    /// The copy.
    #[doc(hidden)]
    type Copy: Borrow<Self> + Send + 'static;

    /// Compiles if an argument of type `&Self` can be copied.
    #[doc(hidden)]
    fn assert(_: &Self) {}

    /// Returns a copy of an argument of type `&Self`.
    #[doc(hidden)]
    fn copy(argument: &Self) -> Self::Copy;
}

#[diagnostic::do_not_recommend]
impl<T: ToOwned<Owned: Send> + Sync + ?Sized + 'static> DetachableCopy for T {
    type Copy = T::Owned;

    fn copy(argument: &T) -> T::Owned {
        argument.to_owned()
    }
}

/// Returns a copy of an argument of type `&T`; the body of a detached call sees it as `&*copy`.
pub fn copied<T: DetachableCopy + ?Sized>(argument: &T) -> impl Deref<Target = T> + Send + use<T> {
    Copied::<T>(T::copy(argument))
}

struct Copied<T: DetachableCopy + ?Sized>(T::Copy);

impl<T: DetachableCopy + ?Sized> Deref for Copied<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.borrow()
    }
}
