//! Waiting for a condition, never for luck.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks again and again until `look` gives something.
///
/// # Panics
/// After `deadline`, naming what did not happen.
pub async fn eventually<T>(what: &str, deadline: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    finally(what, deadline, async || look().await.ok_or("")).await
}

/// Looks again and again until `look` gives something rather than the reason why not.
///
/// # Panics
/// After `deadline`, naming what did not happen and the last reason.
pub async fn finally<T, E: Display>(
    what: &str,
    deadline: Duration,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let until = Instant::now() + deadline;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(reason) => assert!(
                Instant::now() < until,
                "{what} did not happen within {deadline:?}: {reason}"
            ),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
