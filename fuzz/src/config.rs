//! Config files: in force, or refused with a sentence; what is in force compiles, or says why not.

use sluice_common::config::Loaded;
use sluice_normalizer::intake::Intake;
use std::path::Path;

/// One file.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match Loaded::parse(text, Path::new("fuzz.yaml"), Path::new("/nowhere")) {
        Ok(loaded) => {
            if let Err(problems) = Intake::compile(&loaded.config.datasets) {
                assert!(!problems.is_empty());
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
