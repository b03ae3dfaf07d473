//! `make mutants`: switches off, one by one, what the rules and the controls of overload are kept by, and looks whether
//! the tests notice.

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use sluice_tests::mutants::run::{self, Verdict};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Makes mutants in a copy of the tree and runs the tests that must fail for each. Ends with 1 where one survives,
/// does not build, or names a test that is not there.
#[derive(Debug, Parser)]
struct Args {
    /// Only those whose rule (`R7`), sentence, file or tests contain this.
    #[arg(long)]
    about: Option<String>,
    /// The root of the tree.
    #[arg(long, default_value = ".")]
    root: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let begun = Instant::now();
    let style = ProgressStyle::with_template("mutants [{bar:40}] {pos}/{len} {elapsed}").expect("a template");
    let bar = ProgressBar::no_length().with_style(style);
    bar.enable_steady_tick(Duration::from_secs(1));
    let word = args.about.as_deref().filter(|word| !word.is_empty());
    let judging = run::run(&args.root, word, |all, mutant, verdict| {
        bar.set_length(all as u64);
        bar.inc(1);
        let line = format!("{mutant} .. {verdict}");
        if bar.is_hidden() {
            println!("{line}");
        } else {
            bar.println(line);
        }
    });
    // Interrupted, it drops what it runs.
    let judged = tokio::select! {
        judged = judging => judged,
        _ = tokio::signal::ctrl_c() => return ExitCode::from(130),
    };
    bar.finish_and_clear();
    let mut judged = match judged {
        Ok(judged) => judged,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    judged.sort_by_key(|(mutant, _)| {
        (
            mutant.rule[1..].parse::<u8>().unwrap_or(u8::MAX),
            mutant.off.clone(),
        )
    });
    println!("\n| rule | switched off | tests | |\n|---|---|---|---|");
    for (mutant, verdict) in &judged {
        let tests: Vec<String> = mutant.tests.iter().map(|test| format!("`{test}`")).collect();
        println!(
            "| {} | {} | {} | {verdict} |",
            mutant.rule,
            mutant.off,
            tests.join(", ")
        );
    }
    let red = judged
        .iter()
        .filter(|(_, verdict)| *verdict == Verdict::Red)
        .count();
    println!(
        "\n{red} of {} are noticed, {:.0} s",
        judged.len(),
        begun.elapsed().as_secs_f64()
    );
    if red == judged.len() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
