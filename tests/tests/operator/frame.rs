//! What all verbs have alike: help, manual, completions, exit codes.

use crate::command::run;
use std::collections::BTreeSet;
use std::path::Path;

/// Every verb and verb of a verb, from the manual's pages: `tenants`, `tenants add`.
fn verbs() -> BTreeSet<String> {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path().join("man1");
    assert_eq!(run(&["man", "--dir", dir.to_str().expect("text")]).code, 0);
    let pages = std::fs::read_dir(&dir).expect("a directory");
    let names = pages.map(|page| page.expect("a page").file_name().into_string().expect("text"));
    names
        .filter_map(|name| {
            let verb = name.strip_suffix(".1")?.strip_prefix("ingestctl-")?;
            let hidden = verb == "help" || verb.starts_with("help-") || verb.ends_with("-help");
            (!hidden && !verb.starts_with("clickhouse")).then(|| verb.replace('-', " "))
        })
        .collect()
}

#[test]
fn every_verb_is_in_the_docs_has_a_page_and_says_its_exit_codes() {
    let docs = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md"));
    let docs = docs.expect("docs/cli.md");
    let verbs = verbs();
    assert!(verbs.len() >= 4, "{verbs:?}");
    for verb in &verbs {
        let words: Vec<&str> = verb.split(' ').collect();
        let named = docs.contains(&format!("`{verb}")) || docs.contains(&format!("`{verb} "));
        assert!(named, "docs/cli.md does not name `{verb}`");
        let help = run(&[words.as_slice(), &["--help"]].concat());
        assert_eq!(help.code, 0, "{verb}");
        let told = help.stdout.to_lowercase();
        assert!(
            told.contains("exit codes"),
            "{verb} --help does not say its exit codes"
        );
    }
}

#[test]
fn a_wrong_command_line_ends_with_64_and_says_why() {
    for args in [&["nonsense"][..], &["check", "--nonsense"], &[]] {
        let outcome = run(args);
        assert_eq!(outcome.code, 64, "{outcome:?}");
        assert!(
            outcome.stdout.is_empty() && !outcome.stderr.is_empty(),
            "{outcome:?}"
        );
    }
    assert_eq!(run(&["--version"]).code, 0);
}

#[test]
fn completions_and_the_manual_come_from_the_same_words() {
    for shell in ["bash", "zsh", "fish"] {
        let outcome = run(&["completions", shell]);
        assert_eq!(outcome.code, 0);
        assert!(
            outcome.stdout.contains("completions") && outcome.stdout.contains("check"),
            "{shell}"
        );
    }
    let page = run(&["man"]).stdout;
    assert!(page.contains(".TH") && page.contains("check"), "{page}");
}

#[test]
fn json_is_one_document_on_stdout() {
    let outcome = run(&["check", "--output", "json"]);
    assert_eq!(outcome.json()["findings"][0]["what"], "config", "{outcome:?}");
}
