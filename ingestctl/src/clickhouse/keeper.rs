//! The thread that keeps one ClickHouse running.
//!
//! The kernel ties a child's parent-death signal to the *thread* that forked it. So all children are
//! forked by one thread, which ends only after the last of them is gone.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::child;
use super::layout::Layout;
use super::locate::Engine;

/// The wait before the first restart; it doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Whoever killed it again and again waits no longer than this and a start for it to answer, well under 10 s.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A process that ran this long starts again with [`BACKOFF_MIN`].
const STEADY: Duration = Duration::from_secs(60);

/// What to start, each time anew.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) launcher: PathBuf,
    pub(super) engine: Engine,
    pub(super) layout: Layout,
    pub(super) port: u16,
}

/// How a process went, or why it never came.
#[derive(Debug)]
pub(super) enum Ending {
    Exited(ExitStatus),
    NotStarted(io::Error),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "{status}"),
            Self::NotStarted(error) => write!(f, "could not be started: {error}"),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// Set from the fork until just before the pid is reaped: while it is, the pid is ours to signal.
    pid: Option<Pid>,
    /// The first start has succeeded; from now on an exit is followed by a restart.
    keep: bool,
    stopping: bool,
    restarts: u64,
    /// The keeper's last word; set once, when no process runs and none will.
    ended: Option<Ending>,
}

/// A handle on the keeper thread, shared with it.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    state: Mutex<State>,
    changed: Condvar,
}

impl Keeper {
    /// Starts the thread, which starts the process.
    pub(super) fn start(plan: Plan) -> io::Result<Arc<Self>> {
        let keeper = Arc::new(Self::default());
        let shared = Arc::clone(&keeper);
        std::thread::Builder::new()
            .name("clickhouse-keeper".to_owned())
            .spawn(move || shared.run(&plan))?;
        Ok(keeper)
    }

    /// The running process, if there is one right now.
    pub(super) fn pid(&self) -> Option<u32> {
        self.state
            .lock()
            .pid
            .map(|pid| pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// How often a process that died was started again.
    pub(super) fn restarts(&self) -> u64 {
        self.state.lock().restarts
    }

    /// Restart from now on, instead of giving up. False if it has given up already.
    pub(super) fn keep_up(&self) -> bool {
        let mut state = self.state.lock();
        state.keep = true;
        state.ended.is_none()
    }

    /// Waits up to `pause` for the end; returns how it ended, if it did.
    pub(super) fn ended_within(&self, pause: Duration) -> Option<String> {
        let mut state = self.state.lock();
        self.wait_for_end(&mut state, pause);
        state.ended.as_ref().map(Ending::to_string)
    }

    /// SIGTERM, and SIGKILL once `patience` is over. True if SIGTERM was enough.
    pub(super) fn stop(&self, patience: Duration) -> bool {
        let mut state = self.state.lock();
        state.stopping = true;
        self.changed.notify_all();
        signal(&state, Signal::TERM);
        let in_time = self.wait_for_end(&mut state, patience);
        if !in_time {
            self.kill_and_wait(&mut state);
        }
        in_time
    }

    /// SIGKILL at once.
    pub(super) fn kill(&self) {
        let mut state = self.state.lock();
        state.stopping = true;
        self.changed.notify_all();
        self.kill_and_wait(&mut state);
    }

    fn kill_and_wait(&self, state: &mut MutexGuard<'_, State>) {
        /// The kernel needs milliseconds; more means a process stuck in a disk wait.
        const KERNEL_PATIENCE: Duration = Duration::from_secs(5);
        signal(state, Signal::KILL);
        if !self.wait_for_end(state, KERNEL_PATIENCE) {
            tracing::error!("ClickHouse does not end even after SIGKILL; leaving it to the kernel");
        }
    }

    fn wait_for_end(&self, state: &mut MutexGuard<'_, State>, patience: Duration) -> bool {
        !self
            .changed
            .wait_while_for(state, |state| state.ended.is_none(), patience)
            .timed_out()
    }

    fn run(&self, plan: &Plan) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let begun = Instant::now();
            let ending = self.run_once(plan);
            if begun.elapsed() >= STEADY {
                backoff = BACKOFF_MIN;
            }
            if !self.wants_restart() {
                self.finish(ending);
                return;
            }
            tracing::error!(
                %ending, log = %plan.layout.log().display(), retry_in_ms = backoff.as_millis(),
                "ClickHouse died; it is started again"
            );
            if self.stopped_within(backoff) {
                self.finish(ending);
                return;
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
            self.state.lock().restarts += 1;
        }
    }

    /// From fork to reap.
    fn run_once(&self, plan: &Plan) -> Ending {
        let mut child = {
            let mut state = self.state.lock();
            match spawn(plan) {
                Ok(child) => {
                    state.pid = Pid::from_raw(child.id().cast_signed());
                    if state.stopping {
                        signal(&state, Signal::KILL);
                    }
                    child
                }
                Err(error) => return Ending::NotStarted(error),
            }
        };
        wait_without_reaping(&child);
        // Nobody may signal the pid once it is reaped, because the system may give it away.
        let mut state = self.state.lock();
        state.pid = None;
        child.wait().map_or_else(Ending::NotStarted, Ending::Exited)
    }

    fn wants_restart(&self) -> bool {
        let state = self.state.lock();
        state.keep && !state.stopping
    }

    fn stopped_within(&self, pause: Duration) -> bool {
        let mut state = self.state.lock();
        self.changed
            .wait_while_for(&mut state, |state| !state.stopping, pause);
        state.stopping
    }

    fn finish(&self, ending: Ending) {
        self.state.lock().ended = Some(ending);
        self.changed.notify_all();
    }
}

fn wait_without_reaping(child: &Child) {
    let Some(pid) = Pid::from_raw(child.id().cast_signed()) else {
        return;
    };
    while matches!(
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT),
        Err(rustix::io::Errno::INTR)
    ) {}
}

fn signal(state: &State, signal: Signal) {
    if let Some(pid) = state.pid
        && let Err(error) = kill_process(pid, signal)
    {
        tracing::warn!(%error, "could not signal ClickHouse");
    }
}

/// The child sees none of our variables: through `file('/proc/self/environ')` a query could read
/// secrets there. It has a process group of its own, so that Ctrl-C in a terminal reaches us alone and
/// ClickHouse is there while we drain.
fn spawn(plan: &Plan) -> io::Result<Child> {
    use std::os::unix::process::CommandExt;
    let console = plan.layout.fresh_console()?;
    let mut command = child::command(&plan.launcher, &plan.engine, &plan.layout, plan.port);
    command
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(console);
    command.current_dir(plan.layout.root()).process_group(0);
    command.env_clear();
    for name in ["PATH", "LD_LIBRARY_PATH"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    // The watchdog would fork, and a fork has no parent-death signal.
    command.env("TZ", "UTC").env("CLICKHOUSE_WATCHDOG_ENABLE", "0");
    command.spawn()
}
