//! Functions of the service and of the client, which may panic.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Calls the function that was given to the option `name`: `None` if it panics.
///
/// What it has decided is then not known, and whoever calls it goes on with what needs no decision.
/// A panic that went further would take the answer of a handler with it that has had its effect.
pub(super) fn call<T>(name: &'static str, hook: impl FnOnce() -> T) -> Option<T> {
    let result = catch_unwind(AssertUnwindSafe(hook));
    if result.is_err() {
        tracing::error!(
            option = name,
            "a function that was given to an HTTP layer panicked, and is not asked"
        );
    }
    result.ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_panic_is_no_result() {
        assert_eq!(super::call("test", || 7), Some(7));
        assert_eq!(super::call("test", || -> u32 { panic!("the test asks for it") }), None);
    }
}
