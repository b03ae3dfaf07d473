//! The hidden verb `clickhouse-child`: the process that becomes ClickHouse.
//!
//! A process of its own, so that it can be killed alone and cannot take the gateway down. In order:
//! it asks the kernel for SIGKILL when its parent dies, checks that the parent has not died before
//! that, takes the folder's lock, and then runs the engine until SIGTERM.

use std::ffi::{CString, c_char, c_int, c_void};
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::FdFlags;
use rustix::process::{Signal, getpid, getppid, kill_process, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};

use super::layout::Layout;
use super::leftover::{self, LeftoverError};
use super::locate::Engine;
use super::requests;

/// The name of the hidden verb.
pub const VERB: &str = "clickhouse-child";

/// What the text of the statement below, and of no other, contains.
const KEEP_ALIVE_MARKER: &str = "sluice_keep_alive";

/// Keeps the engine up: `clickhouse-local` ends with its last statement, and this one does not end
/// until it is cancelled.
const STATEMENTS: &str = "SYSTEM START LISTEN HTTP; \
     SELECT sleepEachRow(1) AS sluice_keep_alive FROM system.numbers \
     SETTINGS max_block_size = 1, function_sleep_max_microseconds_per_block = 10000000 FORMAT Null";

/// What [`run`] is told by the process that starts it.
#[derive(Debug, Clone, clap::Args)]
pub struct ChildArgs {
    /// The folder `DIR/clickhouse`, with its `config.xml` written.
    #[arg(long)]
    folder: PathBuf,
    /// The loopback port to listen on.
    #[arg(long)]
    http_port: u16,
    /// The process whose death ends this one.
    #[arg(long)]
    parent: i32,
    /// The embedded library to load.
    #[arg(long, conflicts_with = "server", required_unless_present = "server")]
    lib: Option<PathBuf>,
    /// The `clickhouse` binary to become.
    #[arg(long)]
    server: Option<PathBuf>,
}

/// Why no ClickHouse runs. Its supervisor reads it from the console log.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// The process that asked for it is gone.
    #[error("the process that started this ClickHouse (pid {0}) is gone")]
    Orphaned(i32),
    /// Another process has the folder.
    #[error(transparent)]
    Folder(#[from] LeftoverError),
    /// The system refused a step.
    #[error("cannot {step}: {source}")]
    System {
        /// What was tried.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The library cannot be loaded, or is not the one we know.
    #[error("cannot load {lib}: {source}; remove it and run `make setup`")]
    Library {
        /// The file.
        lib: String,
        /// What the loader said.
        source: libloading::Error,
    },
    /// A path holds a zero byte.
    #[error("a path of ClickHouse holds a zero byte")]
    ZeroByte(#[from] std::ffi::NulError),
    /// The engine came back, which it does only when it cannot listen or is broken.
    #[error("ClickHouse ended by itself; the reason is above, or in {0}")]
    Ended(String),
}

/// The arguments that make `ingestctl` this child.
pub(super) fn command(launcher: &Path, engine: &Engine, layout: &Layout, port: u16) -> Command {
    let mut command = Command::new(launcher);
    command.arg(VERB).arg("--folder").arg(layout.root());
    command.arg("--http-port").arg(port.to_string());
    command.arg("--parent").arg(std::process::id().to_string());
    match engine {
        Engine::Library(lib) => command.arg("--lib").arg(lib),
        Engine::Server(binary) => command.arg("--server").arg(binary),
    };
    command
}

/// Becomes ClickHouse. Call it from the main thread, before any other thread is started.
///
/// # Errors
/// [`ChildError`]. With `--server` success does not return; with `--lib` it returns after SIGTERM.
pub fn run(args: &ChildArgs) -> Result<(), ChildError> {
    die_with(args.parent)?;
    let layout = Layout::at(&args.folder).map_err(|source| ChildError::System {
        step: "open its folder",
        source,
    })?;
    let lock = leftover::take(&layout)?;
    match (&args.lib, &args.server) {
        (Some(lib), _) => run_library(lib, &layout, args.http_port),
        (None, Some(binary)) => Err(become_server(binary, &layout, &lock)),
        (None, None) => Err(ChildError::System {
            step: "start without --lib or --server",
            source: io::ErrorKind::InvalidInput.into(),
        }),
    }
}

fn die_with(parent: i32) -> Result<(), ChildError> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| ChildError::System {
        step: "ask for the parent's death signal",
        source: error.into(),
    })?;
    // A parent that died before the line above sends nothing any more.
    match getppid() {
        Some(pid) if pid.as_raw_nonzero().get() == parent => Ok(()),
        Some(_) | None => Err(ChildError::Orphaned(parent)),
    }
}

fn become_server(binary: &Path, layout: &Layout, lock: &File) -> ChildError {
    // The lock must outlive the exec.
    if let Err(error) = rustix::io::fcntl_setfd(lock, FdFlags::empty()) {
        return ChildError::System {
            step: "keep the lock over exec",
            source: error.into(),
        };
    }
    let source = Command::new(binary)
        .arg("server")
        .arg(format!("--config-file={}", layout.config().display()))
        .exec();
    ChildError::System {
        step: "run the clickhouse binary",
        source,
    }
}

fn run_library(lib: &Path, layout: &Layout, port: u16) -> Result<(), ChildError> {
    let arguments = library_arguments(layout, port)?;
    let asked_to_end = end_politely(port).map_err(|source| ChildError::System {
        step: "watch for SIGTERM",
        source,
    })?;
    let mut argv: Vec<*mut c_char> = arguments
        .iter()
        .map(|argument| argument.as_ptr().cast_mut())
        .chain([std::ptr::null_mut()])
        .collect();
    let argc = c_int::try_from(arguments.len()).expect("a dozen arguments");
    call_library(lib, argc, &mut argv).map_err(|source| ChildError::Library {
        lib: lib.display().to_string(),
        source,
    })?;
    if asked_to_end.load(Ordering::SeqCst) {
        return Ok(());
    }
    Err(ChildError::Ended(layout.log().display().to_string()))
}

/// The library leaves SIGTERM to its default, which is as rude as SIGKILL *(tried)*. So a thread waits
/// for it and cancels the statement that keeps the engine up; then the engine shuts down and returns.
/// The flag says whether that was asked for.
fn end_politely(port: u16) -> io::Result<Arc<AtomicBool>> {
    let asked = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&asked);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut terminate = {
        let _entered = runtime.enter();
        signal(SignalKind::terminate())?
    };
    std::thread::Builder::new()
        .name("sigterm".to_owned())
        .spawn(move || {
            runtime.block_on(terminate.recv());
            flag.store(true, Ordering::SeqCst);
            if let Err(error) = requests::cancel(port, KEEP_ALIVE_MARKER) {
                eprintln!("ClickHouse could not be asked to end ({error}); ending it by SIGKILL");
                // The signal ends this very process: there is no result to look at.
                let _ = kill_process(getpid(), Signal::KILL);
            }
        })?;
    Ok(asked)
}

fn library_arguments(layout: &Layout, port: u16) -> Result<Vec<CString>, std::ffi::NulError> {
    [
        "clickhouse",
        "--config-file",
        &layout.config().to_string_lossy(),
        "--path",
        &layout.database().to_string_lossy(),
        "--http_port",
        &port.to_string(),
        "--listen_host",
        "127.0.0.1",
        "--log-level=warning",
        "--query",
        STATEMENTS,
    ]
    .into_iter()
    .map(CString::new)
    .collect()
}

/// `local_result_v2 * chdb_query_cmdline(int argc, char ** argv)`.
type QueryCommandLine = unsafe extern "C" fn(c_int, *mut *mut c_char) -> *mut c_void;

/// Returns when the engine has ended. Its result is not looked at: it has printed its error.
#[expect(
    unsafe_code,
    reason = "the embedded ClickHouse is a C library that is found at run time"
)]
fn call_library(lib: &Path, argc: c_int, argv: &mut [*mut c_char]) -> Result<(), libloading::Error> {
    // SAFETY: loading runs the library's initialisers, while the only other thread of this
    // process waits for a signal. The library stays loaded until the process ends.
    let library = std::mem::ManuallyDrop::new(unsafe { libloading::Library::new(lib)? });
    // SAFETY: the symbol has this signature in chdb.h of the version that setup pins.
    let query = unsafe { library.get::<QueryCommandLine>(b"chdb_query_cmdline\0")? };
    // SAFETY: `argv` holds `argc` zero-ended strings that outlive the call, then a null pointer.
    unsafe { query(argc, argv.as_mut_ptr()) };
    Ok(())
}
