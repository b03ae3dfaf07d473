//! Running `ingestctl`.

use serde_json::Value;
use sluice_tests::service::executable;
use std::process::{Command, Stdio};

/// What came of a command.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Its one document.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs `ingestctl` to its end, with these environment variables besides.
pub fn with_env(args: &[&str], variables: &[(&str, &str)]) -> Outcome {
    let output = Command::new(executable("ingestctl"))
        .args(args)
        .env_remove("SLUICE_ADMIN")
        .env_remove("SLUICE_ADMIN_TOKEN")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    Outcome {
        code: output.status.code().expect("it ended by itself"),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

/// Runs `ingestctl` to its end.
pub fn run(args: &[&str]) -> Outcome {
    with_env(args, &[])
}

/// Lines of `count` events of the default dataset.
pub fn events(name: &str, count: usize) -> String {
    let now = sluice_tests::now_ms();
    let lines = (0..count)
        .map(|n| format!("{{\"event_id\":\"{name}-{n}\",\"timestamp\":{now},\"service\":\"s\"}}\n"));
    lines.collect()
}
