//! The copy of the tree in which mutants are made: what is on the disk, committed or not, but for what git ignores.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes `to` the same as the tree at `root`. What is the same already is left alone, so that it is not built again.
///
/// # Errors
/// Where git cannot list the tree, or a file cannot be read or written.
pub fn copy(root: &Path, to: &Path) -> io::Result<()> {
    let listed = listed(root)?;
    for path in &listed {
        let (from, to) = (root.join(path), to.join(path));
        // Listed, and deleted since.
        if !from.is_file() {
            continue;
        }
        let text = std::fs::read(&from)?;
        if std::fs::read(&to).is_ok_and(|there| there == text) {
            continue;
        }
        if let Some(folder) = to.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&to, text)?;
    }
    let is_gone = |path: &PathBuf| !listed.contains(path) || !root.join(path).is_file();
    for path in files(to, Path::new(""))?.into_iter().filter(is_gone) {
        std::fs::remove_file(to.join(path))?;
    }
    Ok(())
}

fn listed(root: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("git cannot list the tree: {text}")));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let paths = text.split('\0').filter(|path| !path.is_empty());
    Ok(paths.map(PathBuf::from).collect())
}

/// All files below `folder` of `root`, by their paths below `root`.
fn files(root: &Path, folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            found.extend(files(root, &path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_follows_its_tree_and_leaves_alone_what_is_the_same() {
        let (root, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let write = |path: &str, text: &str| std::fs::write(root.path().join(path), text).unwrap();
        let git = Command::new("git")
            .arg("init")
            .arg("-q")
            .current_dir(root.path())
            .status();
        assert!(git.unwrap().success());
        std::fs::create_dir(root.path().join("src")).unwrap();
        write("src/a.rs", "one");
        write("src/b.rs", "two");
        write(".gitignore", "target\n");
        write("target", "built");
        copy(root.path(), to.path()).unwrap();
        let written = |path: &str| to.path().join(path).metadata().unwrap().modified().unwrap();
        let before = written("src/a.rs");
        std::fs::write(to.path().join("src/b.rs"), "a mutant").unwrap();
        std::fs::remove_file(root.path().join(".gitignore")).unwrap();
        std::fs::remove_file(root.path().join("target")).unwrap();
        copy(root.path(), to.path()).unwrap();
        assert_eq!(written("src/a.rs"), before);
        assert_eq!(
            std::fs::read_to_string(to.path().join("src/b.rs")).unwrap(),
            "two"
        );
        let mut left = files(to.path(), Path::new("")).unwrap();
        left.sort();
        assert_eq!(left, [PathBuf::from("src/a.rs"), PathBuf::from("src/b.rs")]);
    }
}
