//! What the oracle sent and what it was told, event by event.
//!
//! The file is append-only text, one line a fact: `sent ATTEMPT TENANT ID,ID,…` is synced before the first byte of
//! the request goes out, `acked|refused|unknown ATTEMPT` before the writer goes on. An attempt without
//! an outcome is unknown.

use super::request::Outcome;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Surprises that are kept; more say nothing new.
const MAX_SURPRISES: usize = 20;

/// An event of one tenant: the tenant's place in the deployment, and the event's number.
pub type Identity = (usize, u64);

/// What is known of one event, over all its attempts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fate {
    /// Attempts that have no outcome yet.
    pub open: u32,
    pub acked: bool,
    pub refused: bool,
    pub unknown: bool,
}

impl Fate {
    /// Whether a row of it would be no surprise.
    #[must_use]
    pub fn may_be_stored(self) -> bool {
        self.acked || self.unknown || self.open > 0
    }
}

/// The ledger of one deployment. All methods may block on the disk.
#[derive(Debug)]
pub struct Ledger {
    book: Mutex<Book>,
    /// The same file, for syncing beside those who write.
    sync: File,
}

#[derive(Debug)]
struct Book {
    file: File,
    fates: HashMap<Identity, Fate>,
    attempts: u64,
    next_event: u64,
    surprises: Vec<String>,
    /// Events of all attempts, by tenant: repeats count.
    attempted: HashMap<usize, Attempted>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Attempted {
    sent: u64,
    acked: u64,
    refused: u64,
}

/// An attempt that waits for its outcome.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    number: u64,
    /// Events of its body: some may be in it twice.
    in_body: u64,
}

impl Ledger {
    /// An empty one in a new file.
    ///
    /// # Errors
    /// Where the file cannot be created.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::create_new(path)?;
        let sync = file.try_clone()?;
        let book = Book {
            file,
            fates: HashMap::new(),
            attempts: 0,
            next_event: 1,
            surprises: Vec::new(),
            attempted: HashMap::new(),
        };
        Ok(Self {
            book: Mutex::new(book),
            sync,
        })
    }

    /// Numbers that no event has had.
    pub fn new_events(&self, count: usize) -> Vec<u64> {
        let mut book = self.book();
        let first = book.next_event;
        book.next_event += count as u64;
        (first..book.next_event).collect()
    }

    /// Notes, before it is sent, that `tenant` sends `events`, in a body of `in_body`.
    ///
    /// # Errors
    /// Where it cannot be synced.
    pub fn sent(&self, tenant: usize, events: &[u64], in_body: usize) -> io::Result<Attempt> {
        let in_body = in_body as u64;
        let attempt = {
            let mut book = self.book();
            book.attempts += 1;
            let ids: Vec<String> = events.iter().map(u64::to_string).collect();
            let line = format!("sent {} {tenant} {}\n", book.attempts, ids.join(","));
            book.file.write_all(line.as_bytes())?;
            book.attempted.entry(tenant).or_default().sent += in_body;
            for event in events {
                book.fates.entry((tenant, *event)).or_default().open += 1;
            }
            let number = book.attempts;
            Attempt { number, in_body }
        };
        self.sync.sync_data()?;
        Ok(attempt)
    }

    /// Notes what became of an attempt.
    ///
    /// # Errors
    /// Where it cannot be synced.
    pub fn ended(&self, attempt: Attempt, tenant: usize, events: &[u64], outcome: Outcome) -> io::Result<()> {
        {
            let mut book = self.book();
            writeln!(book.file, "{} {}", outcome.word(), attempt.number)?;
            let attempted = book.attempted.entry(tenant).or_default();
            match outcome {
                Outcome::Acked => attempted.acked += attempt.in_body,
                Outcome::Refused => attempted.refused += attempt.in_body,
                Outcome::Unknown => {}
            }
            for event in events {
                let fate = book.fates.entry((tenant, *event)).or_default();
                fate.open = fate.open.saturating_sub(1);
                match outcome {
                    Outcome::Acked => fate.acked = true,
                    Outcome::Refused => fate.refused = true,
                    Outcome::Unknown => fate.unknown = true,
                }
            }
        }
        self.sync.sync_data()
    }

    /// How many of a tenant's events, repeats included, must and may be in the log: those of acknowledged
    /// attempts, and those of all that were not refused.
    pub fn appended(&self, tenant: usize) -> (u64, u64) {
        let book = self.book();
        let attempted = book.attempted.get(&tenant).copied().unwrap_or_default();
        (attempted.acked, attempted.sent - attempted.refused)
    }

    /// Notes an answer that no client should ever get.
    pub fn surprise(&self, what: String) {
        let mut book = self.book();
        if book.surprises.len() < MAX_SURPRISES {
            book.surprises.push(what);
        }
    }

    /// The surprises so far.
    #[must_use]
    pub fn surprises(&self) -> Vec<String> {
        self.book().surprises.clone()
    }

    /// Looks at all fates.
    pub fn with_fates<T>(&self, look: impl FnOnce(&HashMap<Identity, Fate>) -> T) -> T {
        look(&self.book().fates)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // A writer that panicked has failed its test already; the book holds what it was told until then.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
