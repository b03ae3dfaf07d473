//! A task for each line of a shelf that has something to be worked on.

use super::file::FileError;
use super::shelf::{Line, Shelf};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use tokio::task::JoinSet;

/// A unit of a line is worked on as long as this is there.
pub struct Working<'a>(pub &'a Shelf, pub &'a Line);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.worked(self.1);
    }
}

/// Works on every line for ever, `one` until it has nothing left. Dropping it is as a crash.
///
/// # Errors
/// The first [`FileError`] of a line: the process must end.
pub async fn work_on<F>(shelf: &Shelf, one: impl Fn(Line) -> F) -> Result<(), FileError>
where
    F: Future<Output = Result<(), FileError>> + Send + 'static,
{
    let mut running: BTreeMap<Line, tokio::task::AbortHandle> = BTreeMap::new();
    let mut tasks: JoinSet<(Line, Result<(), FileError>)> = JoinSet::new();
    loop {
        for line in shelf.lines_to_drive() {
            if let Entry::Vacant(free) = running.entry(line) {
                let line = free.key().clone();
                let work = one(line.clone());
                free.insert(tasks.spawn(async move { (line, work.await) }));
            }
        }
        tokio::select! {
            biased;
            () = shelf.changed() => {}
            Some(ended) = tasks.join_next() => {
                // One that failed inside is begun anew with the next change.
                running.retain(|_, task| !task.is_finished());
                if let Ok((line, ended)) = ended {
                    running.remove(&line);
                    ended?;
                }
            }
        }
    }
}
