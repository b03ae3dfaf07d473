//! Work that many seconds of processor time go into, and that nobody waits for: on threads that leave the processor to
//! all others.

use tokio::sync::oneshot;

/// How nice a gentle thread is: one of nice 0 beside it has nine tenths of a processor that both want, and is not waited for.
pub const NICE: i32 = 10;

/// The work was not done: no thread was to be had, or it panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a thread beside the others could not be had, or panicked")]
pub struct Undone;

/// Does `work` on a thread of its own at [`NICE`]: a thread that was made nicer once can, without a privilege, not be
/// brought back.
///
/// # Errors
/// [`Undone`].
pub async fn gently<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Undone> {
    let (tell, told) = oneshot::channel();
    let done = move || {
        // Of this thread alone. Where it is not allowed, it goes on as all others do.
        rustix::process::setpriority_process(None, NICE).ok();
        tell.send(work()).ok();
    };
    let thread = std::thread::Builder::new().name("gentle".into());
    thread.spawn(done).map_err(|_| Undone)?;
    told.await.map_err(|_| Undone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::getpriority_process;

    #[tokio::test]
    async fn work_is_done_on_a_nicer_thread_and_the_caller_stays_as_it_was() {
        let before = getpriority_process(None).expect("a nice value");
        let there = gently(|| getpriority_process(None)).await.expect("done");
        assert_eq!(there.expect("a nice value"), NICE.max(before));
        assert_eq!(getpriority_process(None).expect("a nice value"), before);
    }

    #[tokio::test]
    async fn work_that_panics_is_undone_and_nothing_waits_for_ever() {
        let undone = gently(|| -> u32 { panic!("as told") }).await;
        assert_eq!(undone, Err(Undone));
    }
}
