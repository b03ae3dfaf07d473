//! Where this machine's ClickHouse is: a `clickhouse` binary, or the embedded library.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The variable that names the embedded library outright.
pub const LIBRARY_VARIABLE: &str = "SLUICE_CLICKHOUSE_LIB";

/// Where `make setup` puts the library, below the root of a clone.
const LIBRARY_IN_CLONE: &str = ".local/clickhouse/libchdb.so";

/// A ClickHouse that can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engine {
    /// A `clickhouse` binary, started as `clickhouse server`.
    Server(PathBuf),
    /// `libchdb.so`, loaded by a child process of ours.
    Library(PathBuf),
}

/// The places that are searched. [`Places::of_this_process`] is what `up` uses.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// The value of `PATH`; absent, no binary is searched for.
    pub path: Option<OsString>,
    /// The value of `SLUICE_CLICKHOUSE_LIB`.
    pub library: Option<OsString>,
    /// Files or folders above which a clone with `.local/clickhouse/libchdb.so` may lie, in order.
    pub below_a_clone: Vec<PathBuf>,
}

/// Why no ClickHouse was found.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LocateError {
    /// The variable names a file that is not there.
    #[error(
        "{LIBRARY_VARIABLE} names {0}, which is not a file: correct it, or unset it and run `make setup`"
    )]
    LibraryMissing(PathBuf),
    /// Nothing was found anywhere.
    #[error(
        "no ClickHouse found (neither a `clickhouse` binary on PATH, nor {LIBRARY_VARIABLE}, nor {LIBRARY_IN_CLONE}): \
         run `make setup` in the repository, or pass --clickhouse-url"
    )]
    NothingFound,
}

impl Places {
    /// The environment of this process, and the folders above its executable.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self {
            path: std::env::var_os("PATH"),
            library: std::env::var_os(LIBRARY_VARIABLE).filter(|value| !value.is_empty()),
            below_a_clone: std::env::current_exe().into_iter().collect(),
        }
    }

    /// Also searches the folders above `place`.
    #[must_use]
    pub fn and_above(mut self, place: impl Into<PathBuf>) -> Self {
        self.below_a_clone.push(place.into());
        self
    }

    /// The first ClickHouse in the order binary, variable, clone.
    ///
    /// # Errors
    /// [`LocateError`], whose message names the command that installs what is missing.
    pub fn locate(&self) -> Result<Engine, LocateError> {
        if let Some(binary) = self.binary_on_path() {
            return Ok(Engine::Server(binary));
        }
        if let Some(library) = &self.library {
            let library = PathBuf::from(library);
            return if library.is_file() {
                Ok(Engine::Library(library))
            } else {
                Err(LocateError::LibraryMissing(library))
            };
        }
        self.below_a_clone
            .iter()
            .find_map(|place| library_above(place))
            .map(Engine::Library)
            .ok_or(LocateError::NothingFound)
    }

    fn binary_on_path(&self) -> Option<PathBuf> {
        std::env::split_paths(self.path.as_ref()?)
            .map(|folder| folder.join("clickhouse"))
            .find(|file| is_executable(file))
    }
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn library_above(place: &Path) -> Option<PathBuf> {
    place
        .ancestors()
        .map(|folder| folder.join(LIBRARY_IN_CLONE))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn write(file: &Path, mode: u32) {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "").unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_binary_on_path_comes_first_then_the_variable_then_the_clone() {
        let root = tempfile::tempdir().unwrap();
        let binary = root.path().join("bin/clickhouse");
        let named = root.path().join("named.so");
        let in_clone = root.path().join("clone").join(LIBRARY_IN_CLONE);
        write(&binary, 0o755);
        write(&named, 0o644);
        write(&in_clone, 0o644);

        let mut places = Places {
            path: Some(root.path().join("bin").into()),
            library: Some(named.clone().into()),
            below_a_clone: vec![root.path().join("clone/target/ci/ingestctl")],
        };
        assert_eq!(places.locate(), Ok(Engine::Server(binary.clone())));
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(
            places.locate(),
            Ok(Engine::Library(named)),
            "a file that cannot be run is no binary"
        );
        places.library = None;
        assert_eq!(places.locate(), Ok(Engine::Library(in_clone)));
    }

    #[test]
    fn finding_nothing_names_the_command_that_installs_it() {
        let error = Places::default().locate().unwrap_err();
        assert!(error.to_string().contains("make setup"), "{error}");
    }

    #[test]
    fn a_variable_that_names_no_file_is_an_error_and_not_passed_over() {
        let root = tempfile::tempdir().unwrap();
        write(&root.path().join(LIBRARY_IN_CLONE), 0o644);
        let absent = root.path().join("absent.so");
        let places = Places {
            library: Some(absent.clone().into()),
            below_a_clone: vec![root.path().to_owned()],
            ..Places::default()
        };
        assert_eq!(places.locate(), Err(LocateError::LibraryMissing(absent)));
    }
}
