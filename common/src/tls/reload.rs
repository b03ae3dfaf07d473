//! Watches certificates and keys: their content is looked at about once a second, and at once on
//! SIGHUP. What cannot be used is refused whole and the old stays in force; connections that are there
//! go on with what they began with.

use super::material::{PemFile, TlsError};
use crate::metrics::{Counter, Metrics};
use crate::shutdown::Stop;
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// A hash of the content of files.
pub type Digest = [u8; 32];

/// Something that is built from files.
pub trait Reloadable: Send + Sync {
    /// Names it in metrics and log lines.
    fn name(&self) -> &'static str;
    /// What it is built from.
    fn files(&self) -> Vec<PemFile>;
    /// [`digest`] of what it was first built from, taken before it was read.
    fn began(&self) -> Digest;
    /// Builds it again and puts it in force, or leaves the old.
    ///
    /// # Errors
    /// [`TlsError`]: the old stays.
    fn reload(&self) -> Result<(), TlsError>;
}

/// As one of those that are watched.
pub fn target(of: impl Reloadable + 'static) -> Arc<dyn Reloadable> {
    Arc::new(of)
}

const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Watches `targets` until `stop`. Ends at once where there is none.
pub async fn watch(targets: Vec<Arc<dyn Reloadable>>, metrics: Metrics, stop: Stop) {
    if targets.is_empty() {
        return;
    }
    let mut watched: Vec<Watched> = targets
        .into_iter()
        .map(|target| Watched::new(target, &metrics))
        .collect();
    let mut asked = match signal(SignalKind::hangup()) {
        Ok(asked) => asked,
        Err(error) => {
            tracing::error!(%error, "certificates are not watched: restart to change one");
            return;
        }
    };
    loop {
        let at_once = tokio::select! {
            () = stop.cancelled() => return,
            _ = asked.recv() => true,
            () = tokio::time::sleep(POLL_INTERVAL) => false,
        };
        let looked = tokio::task::spawn_blocking(move || {
            watched.iter_mut().for_each(|one| one.look(at_once));
            watched
        });
        match looked.await {
            Ok(back) => watched = back,
            Err(error) => {
                tracing::error!(%error, "certificates are not watched any more: report this line and restart");
                return;
            }
        }
    }
}

struct Watched {
    target: Arc<dyn Reloadable>,
    metrics: Metrics,
    /// What was last put in force or refused.
    settled: Digest,
    /// What was there at the last look.
    seen: Digest,
}

impl Watched {
    fn new(target: Arc<dyn Reloadable>, metrics: &Metrics) -> Self {
        let began = target.began();
        let watched = Self {
            target,
            metrics: metrics.clone(),
            settled: began,
            seen: began,
        };
        watched.count("applied", 0);
        watched.count("refused", 0);
        watched
    }

    /// Files are replaced one after the other: only what two looks find alike is tried, unless a person
    /// asked.
    fn look(&mut self, at_once: bool) {
        let now = digest(&self.target.files());
        let steady = std::mem::replace(&mut self.seen, now) == now;
        if now == self.settled || !(steady || at_once) {
            return;
        }
        self.settled = now;
        let certificate = self.target.name();
        match self.target.reload() {
            Ok(()) => {
                self.count("applied", 1);
                tracing::info!(certificate, "new certificates are in force for new connections");
            }
            Err(error) => {
                self.count("refused", 1);
                tracing::error!(certificate, %error, "the new certificates are refused, the old ones stay in force");
            }
        }
    }

    fn count(&self, outcome: &'static str, n: u64) {
        let labels = [("certificate", self.target.name()), ("outcome", outcome)];
        self.metrics.add(Counter::TlsReloads, n, &labels);
    }
}

/// Of all files' bytes; a file that cannot be read counts as its own kind of content.
#[must_use]
pub fn digest(files: &[PemFile]) -> Digest {
    let mut all = Sha256::new();
    for file in files {
        match file.read() {
            Ok(bytes) => {
                all.update((bytes.len() as u64).to_le_bytes());
                all.update(bytes);
            }
            Err(error) => all.update(error.to_string()),
        }
    }
    all.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::super::material::Identity;
    use super::*;
    use parking_lot::Mutex;

    struct Fake {
        files: Vec<PemFile>,
        reloads: Mutex<Vec<bool>>,
    }

    impl Reloadable for Fake {
        fn name(&self) -> &'static str {
            "fake"
        }

        fn files(&self) -> Vec<PemFile> {
            self.files.clone()
        }

        fn began(&self) -> Digest {
            digest(&self.files)
        }

        fn reload(&self) -> Result<(), TlsError> {
            let read = Identity::read(&self.files[0], &self.files[1]).map(|_| ());
            self.reloads.lock().push(read.is_ok());
            read
        }
    }

    fn write(files: &[PemFile], which: usize, pair: &rcgen::CertifiedKey<rcgen::KeyPair>) {
        let text = [pair.cert.pem(), pair.signing_key.serialize_pem()];
        std::fs::write(&files[which].path, &text[which]).expect("written");
    }

    #[test]
    fn a_pair_is_tried_once_it_is_still_and_each_content_only_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |key: &'static str| PemFile {
            key,
            path: dir.path().join(key),
        };
        let files = vec![file("cert"), file("key")];
        let pair = || rcgen::generate_simple_self_signed(["a".into()]).expect("made");
        let (old, new) = (pair(), pair());
        write(&files, 0, &old);
        write(&files, 1, &old);
        let fake = Arc::new(Fake {
            files: files.clone(),
            reloads: Mutex::default(),
        });
        let tried = || std::mem::take(&mut *fake.reloads.lock());
        let target: Arc<dyn Reloadable> = fake.clone();
        let mut watched = Watched::new(target, &Metrics::detached());
        watched.look(false);
        assert_eq!(tried(), [false; 0], "nothing changed");
        write(&files, 0, &new);
        watched.look(false);
        assert_eq!(tried(), [false; 0], "the key may be on its way");
        watched.look(false);
        watched.look(false);
        assert_eq!(tried(), [false], "it did not come: refused, once");
        write(&files, 1, &new);
        watched.look(false);
        watched.look(false);
        assert_eq!(tried(), [true]);
        std::fs::remove_file(&files[1].path).expect("removed");
        watched.look(true);
        assert_eq!(tried(), [false], "asked for, it is tried at once");
        write(&files, 1, &new);
        watched.look(true);
        assert_eq!(tried(), [true]);
    }
}
