//! The time of each stage, alone: `cargo bench -p sluice-bench`, or `-- parse` for one.

use divan::counter::ItemsCount;
use divan::{Bencher, Divan};
use sluice_bench::stages::STAGES;
use sluice_common::process;

#[global_allocator]
static ALLOCATOR: process::Allocator = process::Allocator;

fn main() {
    Divan::from_args().main();
}

#[divan::bench(args = STAGES.map(|stage| stage.name), sample_count = 50, sample_size = 1)]
fn stage(bencher: Bencher<'_, '_>, name: &str) {
    let Some(stage) = STAGES.iter().find(|stage| stage.name == name) else {
        return;
    };
    bencher
        .counter(ItemsCount::new(stage.items))
        .with_inputs(|| stage.ready(1))
        .bench_local_values(|mut round| {
            round();
            // Its directories are removed after the time is taken.
            round
        });
}
