//! A ClickHouse of our own: found, started, kept up and stopped.
//!
//! `up` uses it when no `--clickhouse-url` is given, and tests use it for the real thing. It speaks
//! HTTP on loopback only, as user `default` without a password, in UTC. It dies with the process that
//! started it, SIGKILL included, and keeps its files in `DIR/clickhouse` (see [`layout`]'s design).
//!
//! Idle it takes 0.5 % of a core and 210 MiB resident; it answers 0.2 s after its start, and ends
//! about 1 s after SIGTERM *(measured, 2 cores)*.

mod child;
mod keeper;
mod layout;
mod leftover;
mod locate;
mod requests;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use child::{ChildArgs, ChildError, VERB, run as run_child};
pub use leftover::LeftoverError;
pub use locate::{Engine, LIBRARY_VARIABLE, LocateError, Places};

use keeper::{Keeper, Plan};
use layout::Layout;

/// How long the first start may take until it answers.
pub const START_DEADLINE: Duration = Duration::from_secs(60);
/// How often it is asked whether it answers.
const ASK_EVERY: Duration = Duration::from_millis(25);
/// How often a port that we picked may be lost to somebody else before its use.
const PICKED_PORT_ATTEMPTS: u32 = 3;

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Sluice's data directory; ClickHouse lives in `clickhouse` below it. Whoever starts it holds the
    /// directory's own lock: a ClickHouse that still runs there is stopped as a leftover.
    pub data_dir: PathBuf,
    /// The loopback port; 0 picks a free one, which then stays the same over restarts.
    pub port: u16,
    /// Which ClickHouse, from [`Places::locate`].
    pub engine: Engine,
    /// The `ingestctl` executable, whose hidden verb becomes the child; absent, it is this process's own.
    pub launcher: Option<PathBuf>,
}

/// Why it did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Somebody else listens there.
    #[error(
        "port {0} on 127.0.0.1 is taken: stop what listens there, or pass another --clickhouse-port (0 picks one)"
    )]
    PortTaken(u16),
    /// The folder is held by a process that does not end.
    #[error(transparent)]
    Leftover(#[from] LeftoverError),
    /// The file system, the network stack or the process table refused a step.
    #[error("cannot {step} for ClickHouse: {source}")]
    System {
        /// What was tried.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It ended before it answered.
    #[error("ClickHouse ended before it answered ({ending}); its last words: {last_words}")]
    Exited {
        /// The exit status.
        ending: String,
        /// The end of its console or log, at most 2 KiB.
        last_words: String,
    },
    /// It runs, but does not answer.
    #[error("ClickHouse did not answer within {} s; see {log}", START_DEADLINE.as_secs())]
    Silent {
        /// Its log.
        log: String,
    },
}

/// A running ClickHouse. Dropped, it is killed; [`ClickHouse::stop`] is the polite way.
#[derive(Debug)]
pub struct ClickHouse {
    keeper: Arc<Keeper>,
    port: u16,
    log: PathBuf,
}

impl ClickHouse {
    /// Starts it and returns once it answers queries. From then on, should it die, it is started again
    /// on the same port with a growing pause (0.2 s to 10 s) and an error in the log.
    ///
    /// # Errors
    /// [`StartError`]. Nothing is left running then. It takes at most [`START_DEADLINE`], plus 20 s where
    /// a leftover has to be stopped first.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let joined = tokio::task::spawn_blocking(move || start(&options)).await;
        joined.unwrap_or_else(|error| Err(system("run the start", io::Error::other(error))))
    }

    /// The running process; `None` while it is being restarted.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.keeper.pid()
    }

    /// The loopback port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it answers, such as `http://127.0.0.1:8123`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// How often it died and was started again.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.keeper.restarts()
    }

    /// Its log file.
    #[must_use]
    pub fn log(&self) -> &std::path::Path {
        &self.log
    }

    /// SIGTERM, then SIGKILL after `patience`. Returns once it is gone; true if SIGTERM was enough.
    pub async fn stop(self, patience: Duration) -> bool {
        let keeper = Arc::clone(&self.keeper);
        tokio::task::spawn_blocking(move || keeper.stop(patience))
            .await
            .unwrap_or(false)
    }
}

impl Drop for ClickHouse {
    /// SIGKILL, and waits for the kernel (milliseconds). After [`ClickHouse::stop`] it does nothing.
    fn drop(&mut self) {
        self.keeper.kill();
    }
}

fn start(options: &Options) -> Result<ClickHouse, StartError> {
    let layout = Layout::create(&options.data_dir).map_err(|error| system("make its folder", error))?;
    if let Some(pid) = leftover::stop(&layout)? {
        tracing::warn!(pid, folder = %layout.root().display(), "stopped a ClickHouse left over from an earlier run");
    }
    let mut attempt = 1;
    loop {
        let port = free_port(options.port)?;
        match start_on(port, options, &layout) {
            Err(StartError::Exited { .. })
                if options.port == 0 && attempt < PICKED_PORT_ATTEMPTS && !is_free(port) =>
            {
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

fn start_on(port: u16, options: &Options, layout: &Layout) -> Result<ClickHouse, StartError> {
    layout
        .write_config(port)
        .map_err(|error| system("write the configuration", error))?;
    let launcher = options.launcher.clone().map_or_else(std::env::current_exe, Ok);
    let plan = Plan {
        launcher: launcher.map_err(|error| system("find the ingestctl executable", error))?,
        engine: options.engine.clone(),
        layout: layout.clone(),
        port,
    };
    let keeper = Keeper::start(plan).map_err(|error| system("start a thread", error))?;
    // From here on an early return kills it, by Drop.
    let clickhouse = ClickHouse {
        keeper,
        port,
        log: layout.log(),
    };
    wait_until_ready(&clickhouse, layout)?;
    Ok(clickhouse)
}

fn wait_until_ready(clickhouse: &ClickHouse, layout: &Layout) -> Result<(), StartError> {
    let begun = Instant::now();
    // A process that answers and dies before the keeper is told to keep it up counts as not started.
    while !(requests::answers(clickhouse.port, &layout.database()) && clickhouse.keeper.keep_up()) {
        if let Some(ending) = clickhouse.keeper.ended_within(ASK_EVERY) {
            return Err(StartError::Exited {
                ending,
                last_words: layout.last_words(),
            });
        }
        if begun.elapsed() >= START_DEADLINE {
            return Err(StartError::Silent {
                log: layout.log().display().to_string(),
            });
        }
    }
    Ok(())
}

fn free_port(wanted: u16) -> Result<u16, StartError> {
    let listener = TcpListener::bind(loopback(wanted)).map_err(|error| {
        if error.kind() == io::ErrorKind::AddrInUse {
            StartError::PortTaken(wanted)
        } else {
            system("listen on a port of 127.0.0.1", error)
        }
    })?;
    let address = listener
        .local_addr()
        .map_err(|error| system("read the port", error))?;
    Ok(address.port())
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(loopback(port)).is_ok()
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn system(step: &'static str, source: io::Error) -> StartError {
    StartError::System { step, source }
}
