//! Copies of units where others find them who go on with the partition.

use std::io;
use std::path::Path;

/// Keeps copies of a shelf's files. Blocks.
pub trait Mirror: Send + Sync {
    /// Makes a copy of the file at `path` durable, in the place of one that was there.
    ///
    /// # Errors
    /// Nobody knows whether the copy is there; the one before it is not any more, or still is.
    fn put(&self, name: &str, path: &Path) -> io::Result<()>;

    /// Removes the copy, if there is one.
    ///
    /// # Errors
    /// It may still be there.
    fn remove(&self, name: &str) -> io::Result<()>;
}
