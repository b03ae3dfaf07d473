//! A volume of a size of its own, to be filled.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Written at once by the ballast.
static PIECE: [u8; 64 << 10] = [7; 64 << 10];

/// A tmpfs mounted on a directory; dropping it unmounts it.
#[derive(Debug)]
pub struct Volume {
    path: PathBuf,
}

impl Volume {
    /// Mounts one of so many bytes on `path`, which is made.
    ///
    /// # Panics
    /// Where this process may not mount: these tests need root, or `CAP_SYS_ADMIN`.
    #[must_use]
    pub fn mount(path: &Path, bytes: u64) -> Self {
        std::fs::create_dir_all(path).expect("made");
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(path)
            .output()
            .expect("mount runs");
        assert!(
            output.status.success(),
            "a volume of its own cannot be mounted (run the tests as root, or with CAP_SYS_ADMIN): {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Self {
            path: path.to_owned(),
        }
    }

    /// Takes all the room but `spare` bytes of it.
    ///
    /// # Panics
    /// Where writing fails for another reason than want of room.
    #[must_use]
    pub fn fill(&self, spare: u64) -> Ballast {
        let path = self.path.join("ballast");
        let mut file = File::create(&path).expect("created");
        while file.write_all(&PIECE).is_ok() {}
        let taken = file.metadata().expect("its size").len();
        file.set_len(taken.saturating_sub(spare)).expect("cut");
        Ballast(path)
    }

    /// Bytes that may still be written.
    ///
    /// # Panics
    /// Never for a mounted one.
    #[must_use]
    pub fn free(&self) -> u64 {
        let told = rustix::fs::statvfs(&self.path).expect("it is mounted");
        told.f_bavail * told.f_frsize
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: whoever still uses it keeps it until then.
        Command::new("umount").arg("-l").arg(&self.path).status().ok();
    }
}

/// What fills a volume. Dropping it gives the room back.
#[derive(Debug)]
pub struct Ballast(PathBuf);

impl Drop for Ballast {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}
