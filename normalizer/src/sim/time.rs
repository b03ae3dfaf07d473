//! Virtual time. Where a thread has installed a [`Virtual`], waiting costs nothing: the time moves to the
//! next timer when no task can run. Elsewhere these are tokio's own.

use parking_lot::Mutex;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

thread_local! {
    static INSTALLED: RefCell<Option<Virtual>> = const { RefCell::new(None) };
}

static BEGIN: LazyLock<tokio::time::Instant> = LazyLock::new(tokio::time::Instant::now);

/// A point in time, since some beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(Duration);

/// The deadline has passed.
#[derive(Debug)]
pub struct Elapsed;

/// A time that moves when it is told to. Cloning shares it.
#[derive(Clone)]
pub struct Virtual(Arc<Mutex<State>>);

struct State {
    now: Duration,
    next_id: u64,
    timers: BTreeMap<(Duration, u64), Waker>,
    /// Told of each move.
    moved: Box<dyn Fn(Duration) + Send>,
}

struct Timer {
    time: Virtual,
    at: Duration,
    id: Option<u64>,
}

impl Instant {
    pub fn now() -> Self {
        Self(installed().map_or_else(|| BEGIN.elapsed(), |time| time.now()))
    }

    pub fn elapsed(&self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}

fn installed() -> Option<Virtual> {
    INSTALLED.with_borrow(Clone::clone)
}

/// Waits.
pub async fn sleep(duration: Duration) {
    match installed() {
        None => tokio::time::sleep(duration).await,
        Some(time) => time.sleep(duration).await,
    }
}

/// Waits for a future, but not longer.
///
/// # Errors
/// [`Elapsed`].
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    match installed() {
        None => tokio::time::timeout(duration, future).await.map_err(|_| Elapsed),
        Some(time) => tokio::select! {
            biased;
            output = future => Ok(output),
            () = time.sleep(duration) => Err(Elapsed),
        },
    }
}

/// Blocks; in a simulation nobody else would run anyway.
pub fn block_in_place<T>(work: impl FnOnce() -> T) -> T {
    match installed() {
        None => tokio::task::block_in_place(work),
        Some(_) => work(),
    }
}

impl Virtual {
    /// A time at its beginning, which tells each move.
    pub fn new(moved: impl Fn(Duration) + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(State {
            now: Duration::ZERO,
            next_id: 0,
            timers: BTreeMap::new(),
            moved: Box::new(moved),
        })))
    }

    /// Runs `main` in a runtime of this thread alone, under this time. All tasks end with it.
    pub fn run<T>(&self, main: impl Future<Output = T>) -> T {
        let time = self.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .on_thread_park(move || time.advance())
            .build()
            .unwrap();
        INSTALLED.set(Some(self.clone()));
        let output = runtime.block_on(main);
        drop(runtime);
        INSTALLED.set(None);
        output
    }

    pub fn now(&self) -> Duration {
        self.0.lock().now
    }

    async fn sleep(&self, duration: Duration) {
        let at = self.now() + duration;
        Timer {
            time: self.clone(),
            at,
            id: None,
        }
        .await;
    }

    /// No task can run: on to the next timer.
    fn advance(&self) {
        let mut state = self.0.lock();
        let Some((&(at, _), _)) = state.timers.first_key_value() else {
            return;
        };
        state.now = state.now.max(at);
        let now = state.now;
        (state.moved)(now);
        let later = state.timers.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut state.timers, later);
        drop(state);
        due.into_values().for_each(Waker::wake);
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let time = self.time.clone();
        let mut state = time.0.lock();
        if state.now >= self.at {
            return Poll::Ready(());
        }
        let id = *self.id.get_or_insert_with(|| {
            state.next_id += 1;
            state.next_id
        });
        state.timers.insert((self.at, id), context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.time.0.lock().timers.remove(&(self.at, id));
        }
    }
}
