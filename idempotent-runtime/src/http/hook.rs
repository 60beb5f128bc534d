//! Callbacks of the service and of the client, which may panic.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Calls the function that was passed to the option `name`. Returns `None` if it panics.
///
/// Its decision is then unknown, and the caller continues with what requires no decision. If the
/// panic went further, it would take with it the response of a handler that has already had its
/// effect.
pub(super) fn call<T>(name: &'static str, hook: impl FnOnce() -> T) -> Option<T> {
    let result = catch_unwind(AssertUnwindSafe(hook));
    if result.is_err() {
        tracing::error!(
            option = name,
            "a function passed to an HTTP layer panicked, and its result is not used"
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
