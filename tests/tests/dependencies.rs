//! What is built from others' code: its licences, its sources, and crates that are banned, held against `deny.toml`.
//!
//! `cargo deny` (`make lint`) checks the same and more, and takes minutes to be built; this takes a second and is in
//! every test run. Advisories need a database from the network: `cargo deny check advisories`.

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).expect("a file of the tree")
}

/// All packages that a Linux build takes, as cargo knows them.
fn packages() -> Vec<Value> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let mut metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    serde_json::from_value(metadata["packages"].take()).expect("packages")
}

/// The words in quotes between `begin` and `end` in `deny.toml`.
fn listed(begin: &str, end: &str) -> BTreeSet<String> {
    let text = read("deny.toml");
    let (_, rest) = text.split_once(begin).expect("the list");
    let (list, _) = rest.split_once(end).expect("its end");
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether an SPDX expression can be met by `allowed` licences alone.
fn is_met(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    let met = any_of(&mut rest, allowed);
    assert!(rest.is_empty(), "{expression} is not understood");
    met
}

fn any_of(words: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut met = all_of(words, allowed);
    while let ["OR", rest @ ..] = *words {
        *words = rest;
        met |= all_of(words, allowed);
    }
    met
}

fn all_of(words: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut met = one(words, allowed);
    while let ["AND", rest @ ..] = *words {
        *words = rest;
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    match *words {
        ["(", rest @ ..] => {
            *words = rest;
            let met = any_of(words, allowed);
            *words = words.strip_prefix(&[")"]).expect("a closing parenthesis");
            met
        }
        [name, "WITH", exception, rest @ ..] => {
            *words = rest;
            allowed.contains(&format!("{name} WITH {exception}"))
        }
        [name, rest @ ..] => {
            *words = rest;
            allowed.contains(*name)
        }
        [] => panic!("a licence is missing"),
    }
}

#[test]
fn every_licence_of_what_we_build_on_is_allowed() {
    let allowed = listed("allow = [", "]");
    for (expression, expected) in [
        ("MIT/Apache-2.0", true),
        ("GPL-3.0-only", false),
        ("GPL-3.0-only OR MIT", true),
        ("(MIT OR Apache-2.0) AND GPL-3.0-only", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("MIT WITH some-exception", false),
    ] {
        assert_eq!(is_met(expression, &allowed), expected, "{expression}");
    }
    let packages = packages();
    let theirs = packages.iter().filter(|one| !one["source"].is_null());
    let refused: Vec<String> = theirs
        .clone()
        .filter(|one| !one["license"].as_str().is_some_and(|text| is_met(text, &allowed)))
        .map(|one| format!("{} {}", one["name"], one["license"]))
        .collect();
    assert!(theirs.count() > 100 && refused.is_empty(), "{refused:?}");
}

#[test]
fn everything_comes_from_crates_io_and_nothing_that_is_banned() {
    let lock = read("Cargo.lock");
    let lines = |begin: &str| -> Vec<String> {
        let found = lock.lines().filter_map(|line| line.strip_prefix(begin));
        found.map(|rest| rest.trim_matches('"').to_owned()).collect()
    };
    let elsewhere: Vec<_> = lines("source = ")
        .into_iter()
        .filter(|source| source != CRATES_IO)
        .collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
    let (sources, sums) = (lines("source = ").len(), lines("checksum = ").len());
    assert!(sources > 100 && sources == sums, "each is held by its checksum");
    let banned = bans();
    assert!(banned.iter().any(|(name, _)| name == "openssl-sys"), "{banned:?}");
    let found: Vec<_> = banned
        .iter()
        .filter_map(|(name, wrappers)| {
            let users = users_of(&lock, name);
            let allowed = users.iter().all(|user| wrappers.contains(user));
            (!allowed).then(|| format!("{name} by {users:?}"))
        })
        .collect();
    assert!(found.is_empty(), "{found:?}");
    assert_eq!(
        users_of(&lock, "rdkafka-sys"),
        ["rdkafka"],
        "the lock file is understood"
    );
}

/// Banned crates of `deny.toml`, each with those that may use it all the same.
fn bans() -> Vec<(String, Vec<String>)> {
    let text = read("deny.toml");
    let quoted = |line: &str, key: &str, end: char| -> Vec<String> {
        let rest = line.split_once(key).map_or("", |(_, rest)| rest);
        let rest = rest.split(end).next().unwrap_or_default();
        rest.split('"').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let lines = text
        .lines()
        .filter(|line| line.trim_start().starts_with("{ crate ="));
    let ban = |line| {
        Some((
            quoted(line, "crate =", ',').pop()?,
            quoted(line, "wrappers =", ']'),
        ))
    };
    lines.filter_map(ban).collect()
}

/// The crates that the lock file has depend on `name`.
fn users_of(lock: &str, name: &str) -> Vec<String> {
    let packages = lock.split("[[package]]").skip(1);
    let uses = |package: &&str| {
        let (_, needs) = package.split_once("dependencies = [").unwrap_or_default();
        let mut needs = needs.split('"').skip(1).step_by(2);
        needs.any(|need| need.split(' ').next() == Some(name))
    };
    let named = |package: &str| {
        let (_, rest) = package.split_once("name = \"").unwrap_or_default();
        rest.split('"').next().unwrap_or_default().to_owned()
    };
    packages.filter(uses).map(named).collect()
}

#[test]
fn no_crate_of_ours_takes_whatever_version_there_is() {
    let packages = packages();
    let ours = packages.iter().filter(|one| one["source"].is_null());
    let needs = ours.flat_map(|one| one["dependencies"].as_array().expect("a list"));
    let any: Vec<_> = needs
        .filter(|need| !need["source"].is_null() && need["req"] == "*")
        .map(|need| &need["name"])
        .collect();
    assert!(any.is_empty(), "{any:?}");
}
