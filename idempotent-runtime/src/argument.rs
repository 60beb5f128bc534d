//! The arguments of a detached body: it outlives its caller, so it owns what it uses.

/// An argument that can move into the task of a detached body.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot move into the task of a detached body",
    label = "not `Send + 'static`",
    note = "take an owned type that is `Send`, `Arc` in place of `Rc` for example, or leave `detach` out"
)]
pub trait Detachable {}

#[diagnostic::do_not_recommend]
impl<T: Send + 'static> Detachable for T {}

/// An argument of type `&T` that can be copied into the task of a detached body.
#[diagnostic::on_unimplemented(
    message = "`&{Self}` cannot be copied into the task of a detached body",
    label = "`{Self}` is not `Clone + Send + Sync + 'static`",
    note = "derive `Clone`, or take `Arc<{Self}>`, or leave `detach` out"
)]
pub trait DetachableCopy: ToOwned {}

#[diagnostic::do_not_recommend]
impl<T: ToOwned<Owned: Send> + Sync + ?Sized + 'static> DetachableCopy for T {}

/// Compiles if the argument can move into the task of a detached body.
pub const fn assert_detachable<T: Detachable>(_: &T) {}

/// What an argument of type `&T` becomes in the task of a detached body.
#[derive(Debug)]
pub struct Copied<T: ToOwned + ?Sized>(T::Owned);

impl<T: DetachableCopy + ?Sized> Copied<T> {
    /// Copies the argument.
    pub fn new(argument: &T) -> Self {
        Self(argument.to_owned())
    }
}

impl<T: ToOwned + ?Sized> Copied<T> {
    /// The argument as the body knows it.
    pub fn get(&self) -> &T {
        std::borrow::Borrow::borrow(&self.0)
    }
}
