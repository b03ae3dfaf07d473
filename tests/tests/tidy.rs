//! The law of the tree, checked on its files: who may depend on whom, how large a file may be, and that
//! what clients and operators see is written down.

use sluice_common::classify::{QUARANTINE_CODES, letter_code};
use sluice_common::metrics::{Counter, Gauge, Histogram};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const CRATES: [&str; 7] = [
    "common",
    "common/kafka",
    "edge",
    "normalizer",
    "sink-writer",
    "ingestctl",
    "bench",
];
/// They know `common`, its way to Kafka where they speak to it, and none of each other.
const SERVICES: [&str; 3] = ["edge", "normalizer", "sink-writer"];
/// Each is named in one module of a crate only, and its parts.
const CONFINED: [&str; 3] = ["heed", "clickhouse", "rdkafka"];
const MAX_LINES: usize = 500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Files below `folder` that end in `ending`, with their texts.
fn files(folder: &Path, ending: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else {
        return found;
    };
    for path in entries.map(|entry| entry.expect("an entry").path()) {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" && name != "node_modules" {
            found.extend(files(&path, ending));
        } else if name.ends_with(ending) {
            found.push((path.clone(), std::fs::read_to_string(&path).expect("text")));
        }
    }
    found
}

/// The sources of one crate; tests in files and folders of their own are left out.
fn sources(name: &str) -> Vec<(PathBuf, String)> {
    let found = files(&root().join(name).join("src"), ".rs");
    assert!(!found.is_empty(), "{name} has sources");
    let folders = test_folders(&found);
    let is_test = |path: &Path| {
        path.ends_with("tests.rs")
            || path.components().any(|part| part.as_os_str() == "tests")
            || folders.iter().any(|folder| root().join(path).starts_with(folder))
    };
    let own = |path: &Path| path.strip_prefix(root()).expect("below the root").to_owned();
    found
        .into_iter()
        .filter(|(path, _)| !is_test(&own(path)))
        .collect()
}

/// Folders of modules that are declared for tests only.
fn test_folders(sources: &[(PathBuf, String)]) -> Vec<PathBuf> {
    let declared = sources.iter().flat_map(|(path, text)| {
        let lines = text.lines().zip(text.lines().skip(1));
        lines.filter_map(|(attribute, module)| {
            let module = module.trim().strip_prefix("mod ")?.strip_suffix(';')?;
            (attribute.trim() == "#[cfg(test)]").then(|| path.parent().map(|parent| parent.join(module)))?
        })
    });
    declared.collect()
}

/// A source without its items for tests only.
fn product(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut end: Option<String> = None;
    for line in text.lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        match &end {
            Some(closing) if line == closing || line.starts_with("mod ") && line.ends_with(';') => end = None,
            Some(_) => {}
            None if line.trim() == "#[cfg(test)]" => end = Some(format!("{indent}}}")),
            None => {
                kept.push_str(line);
                kept.push('\n');
            }
        }
    }
    kept
}

/// Names in the sections of a manifest that begin with `[dependencies` or `[target`.
fn dependencies(name: &str) -> Vec<String> {
    let manifest = read(format!("{name}/Cargo.toml"));
    let sections = manifest
        .split("\n[")
        .filter(|section| section.starts_with("dependencies") || section.starts_with("target"));
    let lines = sections.flat_map(|section| section.lines().skip(1));
    lines
        .filter_map(|line| Some(line.split_once('=')?.0.trim().split('.').next()?.to_owned()))
        .collect()
}

#[test]
fn services_depend_on_common_and_never_on_each_other() {
    for name in SERVICES {
        let ours: Vec<String> = dependencies(name)
            .into_iter()
            .filter(|one| one.starts_with("sluice-") || one == "ingestctl")
            .collect();
        let is_common = |one: &String| ["sluice-common", "sluice-kafka"].contains(&one.as_str());
        assert!(ours.iter().all(is_common), "{name}: {ours:?}");
    }
    assert!(
        !dependencies("common")
            .iter()
            .any(|one| one.starts_with("sluice-") || one == "ingestctl")
    );
}

#[test]
fn each_engine_is_named_in_one_module_of_a_crate_only() {
    for name in CRATES {
        let dependencies = dependencies(name);
        for engine in CONFINED
            .iter()
            .filter(|engine| dependencies.iter().any(|one| one == *engine))
        {
            let uses = |text: &str| {
                [
                    format!("use {engine}::"),
                    format!(" {engine}::"),
                    format!("({engine}::"),
                    format!("<{engine}::"),
                ]
                .iter()
                .any(|way| product(text).contains(way))
            };
            let modules: Vec<_> = sources(name)
                .into_iter()
                .filter(|(_, text)| uses(text))
                .map(|(path, _)| path)
                .collect();
            // With its own parts. The normalizer's log in Kafka is a folder of its own, beside what reads topics.
            let is_log = |path: &&PathBuf| path.to_string_lossy().contains("/src/log/kafka/");
            let others: Vec<_> = modules.iter().filter(|one| !is_log(one)).collect();
            let shortest = others
                .iter()
                .min_by_key(|one| (one.components().count(), !one.ends_with("lib.rs")));
            let first = shortest.map(|first| match first.ends_with("lib.rs") {
                true => first.with_file_name(""),
                false => first.with_extension(""),
            });
            let is_its = |one: &&PathBuf| {
                first
                    .as_ref()
                    .is_some_and(|first| one.with_extension("").starts_with(first))
            };
            assert!(others.iter().all(is_its), "{engine} in {modules:?}");
        }
    }
}

#[test]
fn modules_say_what_they_are_for_and_stay_short() {
    for name in CRATES {
        for (path, text) in files(&root().join(name).join("src"), ".rs") {
            assert!(
                text.starts_with("//!"),
                "{}: begin with a `//!` doc",
                path.display()
            );
        }
        for (path, text) in sources(name) {
            let lines = product(&text).lines().count();
            assert!(
                lines <= MAX_LINES,
                "{}: {lines} lines without tests",
                path.display()
            );
        }
    }
}

#[test]
fn nothing_is_left_half_done() {
    let marks = [
        ["FIX", "ME"],
        ["todo", "!("],
        ["unimplemented", "!("],
        ["dbg", "!("],
    ]
    .map(|mark| mark.concat());
    for (path, text) in files(&root(), ".rs") {
        for mark in &marks {
            assert!(!text.contains(mark), "{}: {mark}", path.display());
        }
    }
    for name in CRATES {
        for (path, text) in sources(name) {
            let unwrap = [".unw", "rap()"].concat();
            let text = product(&text);
            let line = text
                .lines()
                .find(|line| line.contains(&unwrap) && !line.trim_start().starts_with("//"));
            assert_eq!(line, None, "{}: `?`, or `expect` with the reason", path.display());
        }
    }
}

#[test]
fn the_tree_stands_alone() {
    let shared = ["../", "shared"].concat();
    let machine = ["\"/", "work/"].concat();
    for ending in [".rs", ".md", ".toml", ".yaml", ".sh", "Makefile", ".service"] {
        for (path, text) in files(&root(), ending) {
            assert!(
                !text.contains(&machine),
                "{} names a place of one machine",
                path.display()
            );
            // The corpus that is read where it is there, and said to be skipped where it is not.
            let allowed = ["bodies.rs", "corpus.rs"].iter().any(|name| path.ends_with(name));
            assert!(
                allowed || !text.contains(&shared),
                "{} reaches out of the repository",
                path.display()
            );
        }
    }
}

#[test]
fn every_limit_is_used() {
    let limits = read("common/src/limits.rs");
    let names: Vec<&str> = limits
        .lines()
        .filter_map(|line| line.strip_prefix("pub const ")?.split(':').next())
        .collect();
    assert!(names.len() > 40, "{names:?}");
    let mut texts: Vec<String> = CRATES
        .iter()
        .flat_map(|name| sources(name))
        .filter(|(path, _)| !path.ends_with("common/src/limits.rs"))
        .map(|(_, text)| text)
        .collect();
    // One limit may follow from another.
    texts.extend(
        limits
            .split(";\n")
            .filter_map(|limit| Some(limit.split_once("pub const ")?.1.split_once('=')?.1.to_owned())),
    );
    let is_named = |text: &String, name: &str| {
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .any(|word| word == name)
    };
    for name in names {
        assert!(
            texts.iter().any(|text| is_named(text, name)),
            "{name} limits nothing"
        );
    }
}

#[test]
fn every_metric_is_in_the_docs_and_no_other() {
    let page = read("docs/metrics.md");
    let names = Counter::ALL.iter().map(|one| one.name());
    let names = names
        .chain(Histogram::ALL.iter().map(|one| one.name()))
        .chain(Gauge::ALL.iter().map(|one| one.name()));
    let known: BTreeSet<&str> = names.collect();
    let rows = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let documented: BTreeSet<&str> = rows.filter(|name| name.starts_with("sluice_")).collect();
    assert_eq!(known, documented);
}

/// The names of the functions of a source that are run as tests.
fn tests_of(text: &str) -> BTreeSet<&str> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let named = lines.iter().enumerate().filter_map(|(at, line)| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        let name = line.strip_prefix("fn ")?.split(['(', '<']).next()?;
        // Its attributes and comments: what stands above it without a gap.
        let above = lines[..at].iter().rev();
        let mut above = above.take_while(|line| !line.is_empty() && !line.ends_with(['{', '}', ';']));
        let runs = |line: &&str| *line == "#[test]" || line.starts_with("#[tokio::test");
        above.any(runs).then_some(name)
    });
    named.collect()
}

#[test]
fn a_function_is_a_test_only_by_its_attribute() {
    let source = "#[tokio::test(flavor = \"x\")]\n/// Why.\n#[expect(a, reason = \"b\")]\nasync fn it_is_one() {\n}\n\
                  /// For a #[test].\nfn it_helps() {}\n\nproptest! {\n    #[test]\n    fn it_is_drawn(a in 0..1) {}\n}\n";
    assert_eq!(tests_of(source), ["it_is_drawn", "it_is_one"].into());
}

/// How many tests the table below a heading names in backquotes, and which of them are not there.
fn tests_named_and_missing(page: &str, heading: &str) -> (usize, Vec<String>) {
    let page = read(page);
    let (_, table) = page.split_once(heading).expect("the table");
    let sources = CRATES
        .iter()
        .chain(&["tests"])
        .flat_map(|name| files(&root().join(name), ".rs"));
    let sources: Vec<String> = sources.map(|(_, text)| text).collect();
    let all: BTreeSet<&str> = sources.iter().flat_map(|text| tests_of(text)).collect();
    let rows = table.lines().filter(|line| line.starts_with("| "));
    let cells = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    // The shortest name of a test is a sentence; what is shorter is a word of the text.
    let named: Vec<&str> = cells.filter(|name| name.matches('_').count() >= 3).collect();
    let missing = named
        .iter()
        .filter(|name| !all.contains(**name))
        .map(ToString::to_string)
        .collect();
    (named.len(), missing)
}

#[test]
fn every_test_that_the_security_page_names_is_there() {
    let (named, missing) =
        tests_named_and_missing("SECURITY.md", "## Each control and the test that holds it");
    assert!(named > 30 && missing.is_empty(), "{missing:?}");
}

#[test]
fn every_test_that_the_list_of_invariants_names_is_there() {
    let (named, missing) = tests_named_and_missing("ARCHITECTURE.md", "## Invariants");
    assert!(named > 40 && missing.is_empty(), "{missing:?}");
}

#[test]
fn every_test_that_the_reliability_page_names_is_there() {
    let (named, missing) = tests_named_and_missing("docs/reliability.md", "## Faults and their tests");
    assert!(named > 60 && missing.is_empty(), "{missing:?}");
}

/// The word in quotes that follows each `marker` (its `*` stands for a name), where one does.
fn words_after(text: &str, before: &str, after: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices(before) {
        let rest =
            text[at + before.len()..].trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
        let Some(rest) = rest.strip_prefix(after) else {
            continue;
        };
        let Some(rest) = rest.trim_start().strip_prefix('"') else {
            continue;
        };
        let word = rest.split('"').next().unwrap_or_default();
        if word.bytes().all(|c| c.is_ascii_lowercase() || c == b'_') {
            found.push(word.to_owned());
        }
    }
    found
}

/// The codes in the first column of a section's table, or in the one where codes stand.
fn documented(page: &str, title: &str) -> BTreeSet<String> {
    let section = page
        .split("\n## ")
        .find(|section| section.starts_with(title))
        .expect("the section");
    let rows = section.lines().filter(|line| line.starts_with("| "));
    rows.filter_map(|row| Some(row.split('`').nth(1)?.to_owned()))
        .collect()
}

#[test]
fn every_code_that_a_client_sees_is_in_the_docs_and_no_other() {
    let page = read("docs/errors.md");
    let mut problems = BTreeSet::new();
    let admin = sources("common").into_iter().filter(|(path, _)| {
        path.components()
            .any(|part| part.as_os_str() == "admin" || part.as_os_str() == "tls")
    });
    for (_, text) in SERVICES.iter().flat_map(|name| sources(name)).chain(admin) {
        let text = product(&text);
        for (before, after) in [
            ("StatusCode::", ","),
            ("Refused::new(status", ","),
            ("refusal", "("),
            ("too_large", "("),
            ("conflict", "("),
            ("missing", "("),
            ("AuthError::", " => ("),
        ] {
            problems.extend(words_after(&text, before, after));
        }
    }
    let mut told = documented(&page, "Refusals of whole requests");
    told.extend(documented(&page, "Refusals of control routes"));
    assert_eq!(problems, told);
    let faults = read("normalizer/src/intake/fault.rs");
    let codes = faults
        .split("fn code(")
        .nth(1)
        .and_then(|rest| rest.split("\n    }").next())
        .expect("codes");
    let rows: BTreeSet<String> = codes
        .split("=> \"")
        .skip(1)
        .filter_map(|rest| Some(rest.split('"').next()?.to_owned()))
        .collect();
    assert_eq!(rows, documented(&page, "Rejected rows"));
    let letters = read("sink-writer/src/dead_letters.rs");
    let mut letters: BTreeSet<String> = words_after(&product(&letters), "code:", "").into_iter().collect();
    letters.extend(QUARANTINE_CODES.map(letter_code));
    assert_eq!(letters, documented(&page, "Dead letters"));
}
