//! Taking a changed config file while the process runs.
//!
//! The file's content is looked at every second, not its time or its directory: that holds for ConfigMaps
//! (links that are swapped), network file systems and editors that rename. SIGHUP looks at once. A change
//! seen by looking must be the same twice in a row, so that a file that is being written is not taken for
//! half of it.
//!
//! A new config is read and checked whole, and every [`Part`] prepares it, before anything changes: if one
//! finds a problem, all is refused and the old config stays in force. Then all parts take it, one after the
//! other, each at once. Keys that are read at start only are taken note of, and said to wait.

use crate::admin::Control;
use crate::clock::{SharedClock, UnixMs};
use crate::config::history::History;
use crate::config::load::read_text;
use crate::config::{Config, ConfigError, Loaded, diff};
use crate::metrics::{Counter, Gauge, Metrics};
use crate::shutdown::Stop;
use axum::routing::get;
use axum::{Json, Router};
use parking_lot::Mutex;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

/// Puts a prepared config in force. It must not fail, nor wait for anything outside this process.
pub type Apply = Box<dyn FnOnce() + Send>;
/// One part of a process that follows the config: prepares a new one, or says all that is wrong with it,
/// in sentences that begin with their place. Nothing changes before [`Apply`] is called.
pub type Part = Box<dyn Fn(&Loaded) -> Result<Apply, Vec<String>> + Send + Sync>;

/// Between two looks at the file.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A change must be seen twice, so far apart.
const SETTLE: Duration = Duration::from_millis(200);
/// Looks at a file that changes all the time.
const SETTLE_LOOKS: usize = 25;

/// What is in force, and what is not. Served at `GET /admin/v1/config`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct State {
    /// The file; none where the default config is in force.
    pub path: Option<PathBuf>,
    /// SHA-256 of its text.
    pub sha256: String,
    /// Its number in the history; none where it could not be kept.
    pub number: Option<u64>,
    /// Since when it is in force, ms since 1970.
    pub applied_at_ms: UnixMs,
    /// Keys that take effect at the next start.
    pub restart_pending: Vec<String>,
    /// Why the file as it is now was refused.
    pub last_error: Option<String>,
}

/// Follows one config file.
pub struct Reloader {
    path: Option<PathBuf>,
    data_dir: PathBuf,
    parts: Vec<Part>,
    metrics: Metrics,
    clock: SharedClock,
    history: History,
    /// As the file said at start.
    started: Config,
    /// As the file says that is in force.
    current: Mutex<Config>,
    state: Arc<Mutex<State>>,
}

/// What became of one reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Applied,
    Refused,
    Unchanged,
}

impl Outcome {
    const ALL: [Self; 3] = [Self::Applied, Self::Refused, Self::Unchanged];

    fn label(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Refused => "refused",
            Self::Unchanged => "unchanged",
        }
    }
}

impl Reloader {
    /// Follows the file that `loaded` was read from, if it was one; notes it in the history.
    #[must_use]
    pub fn new(loaded: &Loaded, metrics: &Metrics, clock: &SharedClock) -> Self {
        let path = loaded.source.file();
        // Without what a command line put over it.
        let text = &loaded.source.text;
        let file = Loaded::parse(text, &loaded.source.path, &loaded.data_dir);
        let started = file.map_or_else(|_| loaded.config.clone(), |file| file.config);
        let state = State {
            path: path.map(Path::to_owned),
            ..State::default()
        };
        let reloader = Self {
            path: path.map(Path::to_owned),
            data_dir: loaded.data_dir.clone(),
            parts: Vec::new(),
            metrics: metrics.clone(),
            clock: Arc::clone(clock),
            history: History::of(&loaded.data_dir),
            current: Mutex::new(started.clone()),
            started,
            state: Arc::new(Mutex::new(state)),
        };
        reloader.show();
        reloader.note(text, Vec::new());
        reloader
    }

    /// The same with one more part; parts take a config in this order.
    #[must_use]
    pub fn with(mut self, part: Part) -> Self {
        self.parts.push(part);
        self
    }

    /// Mounts `GET /admin/v1/config`.
    #[must_use]
    pub fn mount(&self, control: Control) -> Control {
        control.with(routes(Arc::clone(&self.state)))
    }

    /// Follows the file until `stop`. From here on SIGHUP no longer ends the process.
    ///
    /// # Errors
    /// Where the process may not have signal handlers.
    pub fn start(self, stop: Stop) -> std::io::Result<JoinHandle<()>> {
        let hangup = signal(SignalKind::hangup())?;
        Ok(tokio::spawn(Arc::new(self).follow(hangup, stop)))
    }

    async fn follow(self: Arc<Self>, mut hangup: Signal, stop: Stop) {
        let mut seen = self.state.lock().sha256.clone();
        loop {
            let asked = tokio::select! {
                () = stop.cancelled() => return,
                // The kernel may end the stream of signals only with the process.
                _ = hangup.recv() => true,
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            let Some(path) = self.path.clone() else {
                if asked {
                    tracing::info!("SIGHUP: there is no config file to read again");
                }
                continue;
            };
            let mut content = look(&path).await;
            if !asked && content.hash != seen {
                content = settled(&path, content).await;
            }
            if asked || content.hash != seen {
                seen.clone_from(&content.hash);
                self.clone().take(content).await;
            }
        }
    }

    /// Read → checked → prepared → in force, or refused whole.
    async fn take(self: Arc<Self>, content: Content) {
        let this = Arc::clone(&self);
        let done = tokio::task::spawn_blocking(move || this.decide(content)).await;
        let outcome = done.unwrap_or_else(|panic| {
            self.refused(&format!("taking it failed inside: {panic}"));
            Outcome::Refused
        });
        self.metrics
            .add(Counter::ConfigReloads, 1, &[("outcome", outcome.label())]);
    }

    fn decide(&self, content: Content) -> Outcome {
        if content.text.is_ok() && content.hash == self.state.lock().sha256 {
            if self.state.lock().last_error.take().is_some() {
                tracing::info!("the config file is again the one in force");
            }
            return Outcome::Unchanged;
        }
        match self.prepare(content) {
            Ok((loaded, applies)) => {
                self.apply(&loaded, applies);
                Outcome::Applied
            }
            Err(error) => {
                self.refused(&error.to_string());
                Outcome::Refused
            }
        }
    }

    fn prepare(&self, content: Content) -> Result<(Loaded, Vec<Apply>), ConfigError> {
        let path = self.path.as_deref().unwrap_or(Path::new("(default config)"));
        let loaded = Loaded::parse(&content.text?, path, &self.data_dir)?;
        if loaded.source.text.trim().is_empty() {
            return Err(loaded
                .source
                .refuse(&["the file is empty: write `{}` for the default config".to_owned()]));
        }
        let (mut applies, mut problems) = (Vec::new(), Vec::new());
        for part in &self.parts {
            match part(&loaded) {
                Ok(apply) => applies.push(apply),
                Err(found) => problems.extend(found),
            }
        }
        if !problems.is_empty() {
            return Err(loaded.source.refuse(&problems));
        }
        Ok((loaded, applies))
    }

    fn apply(&self, loaded: &Loaded, applies: Vec<Apply>) {
        applies.into_iter().for_each(|apply| apply());
        let before = std::mem::replace(&mut *self.current.lock(), loaded.config.clone());
        let changed: Vec<String> = diff::changes(&before, &loaded.config)
            .into_iter()
            .map(|one| one.key)
            .collect();
        let waiting = diff::at_restart(&diff::changes(&self.started, &loaded.config));
        self.note(&loaded.source.text, waiting.clone());
        tracing::info!(
            changed = changed.join(", "),
            "the config was changed and is in force"
        );
        if !waiting.is_empty() {
            tracing::warn!("takes effect at the next start: {}", waiting.join(", "));
        }
    }

    fn refused(&self, error: &str) {
        tracing::error!("the changed config is refused, the old one stays in force: {error}");
        self.state.lock().last_error = Some(error.to_owned());
    }

    /// Writes the history, and says what is in force.
    fn note(&self, text: &str, restart_pending: Vec<String>) {
        let now = self.clock.now_ms();
        let kept = self.history.keep(text, now);
        if let Err(error) = &kept {
            tracing::warn!(%error, "the config in force could not be kept in the history");
        }
        let mut state = self.state.lock();
        state.sha256 = hex::encode(Sha256::digest(text));
        state.number = kept.ok().map(|kept| kept.number);
        state.applied_at_ms = now;
        state.restart_pending = restart_pending;
        state.last_error = None;
    }

    fn show(&self) {
        for outcome in Outcome::ALL {
            self.metrics
                .add(Counter::ConfigReloads, 0, &[("outcome", outcome.label())]);
        }
        let state = Arc::clone(&self.state);
        self.metrics.watch(Gauge::ConfigRestartPending, &[], move || {
            f64::from(u8::from(!state.lock().restart_pending.is_empty()))
        });
    }
}

fn routes(state: Arc<Mutex<State>>) -> Router {
    let answer = move || async move { Json(state.lock().clone()) };
    Router::new().route("/admin/v1/config", get(answer))
}

/// What one look found.
struct Content {
    text: Result<String, ConfigError>,
    /// Of the text, or of why there is none.
    hash: String,
}

async fn look(path: &Path) -> Content {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let text = read_text(&path);
        let hash = match &text {
            Ok(text) => Sha256::digest(text),
            Err(error) => Sha256::digest(error.to_string()),
        };
        Content {
            text,
            hash: hex::encode(hash),
        }
    });
    read.await.unwrap_or_else(|panic| Content {
        text: Err(ConfigError::Read {
            path: PathBuf::new(),
            error: std::io::Error::other(panic),
        }),
        hash: String::new(),
    })
}

/// Looks again until the file stays as it is; a writer that takes longer than this is not waited for.
async fn settled(path: &Path, mut content: Content) -> Content {
    for _ in 0..SETTLE_LOOKS {
        tokio::time::sleep(SETTLE).await;
        let again = look(path).await;
        if again.hash == content.hash {
            return again;
        }
        content = again;
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tempfile::TempDir;

    struct Ground {
        dir: TempDir,
        applied: Arc<AtomicUsize>,
        reloader: Arc<Reloader>,
    }

    /// A part that takes any config but those with a tenant `never`.
    fn ground(text: &str) -> Ground {
        let dir = TempDir::new().expect("a directory");
        let path = dir.path().join("sluice.yaml");
        std::fs::write(&path, text).expect("written");
        let loaded = Loaded::read(Some(&path), dir.path()).expect("valid");
        let clock: SharedClock = Arc::new(ManualClock::at(7));
        let applied = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&applied);
        let part = move |loaded: &Loaded| -> Result<Apply, Vec<String>> {
            if loaded.config.tenants.iter().any(|one| one.id.as_str() == "never") {
                return Err(vec!["tenants: never: not here".to_owned()]);
            }
            let count = Arc::clone(&count);
            Ok(Box::new(move || {
                count.fetch_add(1, Ordering::SeqCst);
            }))
        };
        let reloader = Reloader::new(&loaded, &Metrics::detached(), &clock);
        let taking = |_: &Loaded| -> Result<Apply, Vec<String>> { Ok(Box::new(|| ())) };
        let reloader = Arc::new(reloader.with(Box::new(taking)).with(Box::new(part)));
        Ground {
            dir,
            applied,
            reloader,
        }
    }

    impl Ground {
        async fn change(&self, text: &str) -> Outcome {
            let path = self.dir.path().join("sluice.yaml");
            std::fs::write(&path, text).expect("written");
            self.reloader.decide(look(&path).await)
        }

        fn state(&self) -> State {
            self.reloader.state.lock().clone()
        }
    }

    #[tokio::test]
    async fn an_invalid_file_is_refused_whole_and_the_old_config_stays() {
        let ground = ground("log: {retain: 1h}\n");
        let first = ground.state();
        assert_eq!((first.number, first.applied_at_ms), (Some(1), 7));
        for broken in [
            "log: {retain: 2x}\nedge: {listn: 1}\n",
            "tenants:\n- {id: never, keys: []}\n",
            " \n",
            "log: [",
        ] {
            assert_eq!(ground.change(broken).await, Outcome::Refused, "{broken}");
            assert_eq!(ground.applied.load(Ordering::SeqCst), 0);
            let state = ground.state();
            assert!(
                state
                    .last_error
                    .is_some_and(|error| error.contains("sluice.yaml:"))
            );
            assert_eq!((state.sha256, state.number), (first.sha256.clone(), Some(1)));
        }
        assert_eq!(ground.change("log: {retain: 1h}\n").await, Outcome::Unchanged);
        assert_eq!(ground.state().last_error, None);
    }

    #[tokio::test]
    async fn a_valid_file_is_applied_kept_and_says_what_waits_for_a_restart() {
        let ground = ground("log: {retain: 1h}\n");
        let changed = "log: {retain: 2h}\nclickhouse: {database: other}\ntenants: [{id: a, keys: []}]\n";
        assert_eq!(ground.change(changed).await, Outcome::Applied);
        assert_eq!(ground.applied.load(Ordering::SeqCst), 1);
        let state = ground.state();
        assert_eq!(state.restart_pending, ["clickhouse.database", "log.retain"]);
        assert_eq!(state.number, Some(2));
        let back = "log: {retain: 60m}\ntenants: [{id: a, keys: []}]\n";
        assert_eq!(ground.change(back).await, Outcome::Applied);
        assert!(ground.state().restart_pending.is_empty(), "as at start again");
        assert_eq!(ground.reloader.history.text(2).expect("kept"), changed);
    }

    #[tokio::test]
    async fn a_file_that_goes_away_is_refused_until_it_is_back() {
        let ground = ground("{}");
        let path = ground.dir.path().join("sluice.yaml");
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(ground.reloader.decide(look(&path).await), Outcome::Refused);
        assert_eq!(ground.change("{}").await, Outcome::Unchanged);
    }
}
