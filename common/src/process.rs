//! What every service's `main` does alike: a runtime, an exit code, one error line that says what to do.

use crate::metrics::Metrics;
use crate::telemetry::Telemetry;
use backtrace::Backtrace;
use std::fmt::Display;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinError;

/// The allocator of every service. A request leaves some hundred small pieces, and tasks that compute hand their
/// thread's other work on to fresh threads (`block_in_place`): glibc's allocator keeps what was freed with each of its
/// arenas. Beside it, in turn on two cores (November 2026): 7,000 stored events/s instead of 3,000 to 4,900 with one
/// event a request, 510 MiB instead of 1,050 under full load with 1,000, where CPU is the same.
pub use tikv_jemallocator::Jemalloc as Allocator;

/// Why a process ends with an error: its message is all that a person gets, so it says what to do.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    /// A failure with a message.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// A part that must not end has ended.
    #[must_use]
    pub fn ended<E: Display>(part: &str, how: Result<Result<(), E>, JoinError>) -> Self {
        match how {
            Ok(Ok(())) => Self(format!("{part} ended by itself")),
            Ok(Err(error)) => Self(format!("{part} stopped: {error}")),
            Err(panic) => Self(format!("{part} failed inside: {panic}")),
        }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(crate::error::chain(&error))
    }
}

/// Threads that run tasks, at least. On fewer cores than that a task which computes for some milliseconds (a range that
/// is decided, a block that is made) shares its core with those that answer clients instead of being in their way: on
/// one core acknowledgements' p99 was 5.5 ms with four threads and 9.2 ms with one.
const LEAST_WORKERS: usize = 4;

/// The runtime of a service: a thread a core, and at least [`LEAST_WORKERS`].
///
/// # Errors
/// Where threads cannot be made.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.max(LEAST_WORKERS))
        .enable_all()
        .build()
}

/// Tells of panics much as the standard library does, but without the lock that it holds while a backtrace is made: an
/// allocation that is refused meanwhile waits for that lock for ever, on the thread that has it (Rust 1.95, with
/// `RUST_BACKTRACE`). A process that has too little memory must end, and be started again, instead of standing still.
pub fn tell_panics() {
    let how = std::env::var("RUST_BACKTRACE").unwrap_or_default();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        let mut text = format!("\nthread '{}' {panic}\n", thread.name().unwrap_or("unnamed"));
        match how.as_str() {
            "" | "0" => {}
            "full" => text += &format!("{:#?}\n", Backtrace::new()),
            _ => text += &format!("{:?}\n", Backtrace::new()),
        }
        // A second panic would end the process; there is nobody to tell that nobody can be told.
        std::io::stderr().write_all(text.as_bytes()).ok();
    }));
}

/// Runs `work` on a multi-threaded runtime; an error is one line on stderr and exit code 1.
pub fn run(work: impl Future<Output = Result<(), Failure>>) -> ExitCode {
    tell_panics();
    let outcome = match runtime() {
        Ok(runtime) => {
            let outcome = runtime.block_on(async {
                // Before the config is followed there is nothing to read again, and no reason to end.
                let _ignored = signal(SignalKind::hangup())?;
                work.await
            });
            // Whatever still runs was given its deadline.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(Failure::from(error)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(message)) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Says that the service is ready, and whether TLS is spoken at its address: one JSON line on stdout, or a log line.
pub fn ready(json: bool, service: &str, (address, tls): (SocketAddr, bool), admin: SocketAddr) {
    let scheme = if tls { "https" } else { "http" };
    let (address, admin) = (format!("{scheme}://{address}"), format!("http://{admin}"));
    if json {
        println!(
            "{}",
            serde_json::json!({"ready": true, service: address, "admin": admin})
        );
    } else {
        tracing::info!(address, admin, "ready");
    }
}

/// Says how the stop went.
pub fn stopped(in_time: bool) {
    if in_time {
        tracing::info!("stopped");
    } else {
        tracing::warn!("not everything was finished in time; what is durable is taken up at the next start");
    }
}

/// Sends the last spans and metrics; both exporters block, so they get a thread that may.
pub async fn flush(telemetry: Telemetry, metrics: Metrics) {
    let flushed = tokio::task::spawn_blocking(move || {
        telemetry.end();
        metrics.shutdown();
    });
    if flushed.await.is_err() {
        tracing::debug!("the last spans were not flushed");
    }
}
