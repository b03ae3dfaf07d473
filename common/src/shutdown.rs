//! Stopping in order: one signal that every part watches, and a deadline for all of them.

use crate::limits::SHUTDOWN_DEADLINE;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Told once to all parts: take nothing more, finish what was taken.
pub type Stop = CancellationToken;

/// Listens for SIGTERM and SIGINT from now on; the future ends with the first of them. Called before a
/// process says that it is ready: whoever reads that may send one at once.
///
/// # Errors
/// Where the process may not have signal handlers.
pub fn asked_to_stop() -> std::io::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

/// Runs `work` to its end within the shutdown deadline; false where it did not end in time.
pub async fn within_deadline(work: impl Future<Output = ()>) -> bool {
    within(SHUTDOWN_DEADLINE, work).await
}

async fn within(deadline: Duration, work: impl Future<Output = ()>) -> bool {
    tokio::time::timeout(deadline, work).await.is_ok()
}
