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
    look: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    within(deadline, look)
        .await
        .unwrap_or_else(|reason| panic!("{what} did not happen within {deadline:?}: {reason}"))
}

/// The same, for whoever has more to say of it than the last reason.
///
/// # Errors
/// That reason, after `deadline`.
pub async fn within<T, E>(deadline: Duration, mut look: impl AsyncFnMut() -> Result<T, E>) -> Result<T, E> {
    let until = Instant::now() + deadline;
    loop {
        match look().await {
            Err(_) if Instant::now() < until => tokio::time::sleep(PAUSE).await,
            ended => return ended,
        }
    }
}
