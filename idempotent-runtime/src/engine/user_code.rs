//! User code that the background runs, on another thread than that of the renewals.

use std::cell::Cell;

thread_local! {
    /// True on the thread that renews leases.
    static IS_OURS: Cell<bool> = const { Cell::new(false) };
}

/// Marks this thread as the one that renews leases.
pub(super) fn mark_thread_of_renewals() {
    IS_OURS.set(true);
}

/// Runs user code, which may take its time. On the thread that renews leases, it does not delay any
/// of them.
pub(super) async fn run(code: impl FnOnce() + Send + 'static) {
    if IS_OURS.get() {
        // The code catches its own panics.
        let _ = tokio::task::spawn_blocking(code).await;
    } else {
        code();
    }
}
