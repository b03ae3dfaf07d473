//! What is released has no failpoints: not a name of them, and no build that would bring them along. (`make build`
//! looks through the binaries that it has made.)

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The module has no dependency where the feature is off, so that it can be compiled by itself.
fn module() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../common/src/failpoint/mod.rs")
}

fn rustc(args: &[&str], source: &Path, out: &Path) -> Output {
    let mut command = Command::new("rustc");
    command
        .args(["--edition", "2024", "-O", "--out-dir"])
        .arg(out)
        .args(args)
        .arg(source);
    command.output().expect("a compiler")
}

fn has(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len()).any(|window| window == word.as_bytes())
}

#[test]
fn without_the_feature_a_program_has_no_name_of_a_point_and_safeties_cannot_be_off() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = dir.path().join("passes.rs");
    let text = format!(
        "#[path = {:?}] #[allow(dead_code)] mod failpoint;\n\
         use failpoint::{{Bound, Point, Safety, hit, is_on, shrunk}};\n\
         const NONE: bool = is_on(Safety::Verify) && shrunk(Bound::RotateMs, 7) == 7;\n\
         fn main() {{ hit(Point::LogWrite).expect(\"never\"); std::process::exit(i32::from(!NONE)) }}\n",
        module().canonicalize().expect("there")
    );
    std::fs::write(&source, text).expect("written");
    let built = rustc(&[], &source, dir.path());
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    let program = dir.path().join("passes");
    let ran = Command::new(&program)
        .env("SLUICE_FAILPOINTS", dir.path())
        .status();
    assert!(ran.expect("it runs").success());
    assert!(!dir.path().join("hits").exists());
    let bytes = std::fs::read(program).expect("read");
    for word in ["log.write", "SLUICE_FAILPOINTS"] {
        assert!(!has(&bytes, word), "{word} is in it");
    }
}

#[test]
fn a_release_with_the_feature_does_not_build() {
    let dir = tempfile::tempdir().expect("a directory");
    let args = [
        "--cfg",
        "feature=\"failpoints\"",
        "--crate-type",
        "lib",
        "-C",
        "debug-assertions=off",
    ];
    let built = rustc(&args, &module(), dir.path());
    assert!(!built.status.success());
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(said.contains("failpoints are for tests"), "{said}");
}
