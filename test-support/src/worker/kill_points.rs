//! The worker's side of kill points.

use std::collections::HashMap;
use std::io::{self, BufRead as _, Write as _};
use std::sync::Arc;
use std::thread;

use tokio::sync::Semaphore;

use super::{AT, GO, POINTS_VARIABLE};

/// The points at which this process waits. A point that the test did not name costs nothing.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// use idempotency_test_support::worker::{BEFORE_EFFECT, KillPoints};
///
/// let points = KillPoints::from_env();
/// points.reach(BEFORE_EFFECT).await; // returns at once here: no test has named the point
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct KillPoints {
    /// One permit for each `go`.
    armed: Arc<HashMap<String, Semaphore>>,
}

impl KillPoints {
    /// Returns the points that were passed to [`Worker::spawn`](super::Worker::spawn), or none if
    /// this process is not a worker.
    ///
    /// Reads standard input from now on. When it ends, the test is gone, and this process exits.
    pub fn from_env() -> Self {
        let names = std::env::var(POINTS_VARIABLE).unwrap_or_default();
        let armed = names.split(',').filter(|name| !name.is_empty());
        let armed = Arc::new(
            armed.map(|name| (String::from(name), Semaphore::new(0))).collect::<HashMap<_, _>>(),
        );
        if !armed.is_empty() {
            let points = Arc::clone(&armed);
            thread::spawn(move || listen(&points));
        }
        Self { armed }
    }

    /// Returns true if the test has named this point.
    pub fn has(&self, point: &str) -> bool {
        self.armed.contains_key(point)
    }

    /// Reports that this point is reached and waits until the test lets it continue, if the test
    /// has named the point.
    ///
    /// Several tasks may wait at one point; each `go` releases one of them.
    pub async fn reach(&self, point: &str) {
        let Some(permits) = self.armed.get(point) else { return };
        // A test that is gone reads nothing; the listener then ends this process.
        let _ = announce(point);
        if let Ok(permit) = permits.acquire().await {
            permit.forget();
        }
    }
}

fn announce(point: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{AT}{point}")?;
    output.flush()
}

fn listen(points: &HashMap<String, Semaphore>) {
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        if let Some(permits) = line.strip_prefix(GO).and_then(|point| points.get(point)) {
            permits.add_permits(1);
        }
    }
    std::process::exit(0);
}
