#!/usr/bin/env bash
# Fuzzes each target for SECS seconds (default 60), or those named: fuzz/run.sh [TARGET…].
#
# The layout is cargo-fuzz's, and `cargo fuzz run TARGET` works as well. Here the same instrumentation is
# asked for directly, which needs neither an installation nor a nightly compiler.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
secs=${SECS:-60}
triple=$(rustc -vV | sed -n 's/^host: //p')
# Beside what the products are built into, and apart from it: other flags, other lock file.
target=${CARGO_TARGET_DIR:-$here/../target}/fuzz
case "$target" in /*) ;; *) target=$PWD/$target ;; esac
cd "$here"
export CARGO_TARGET_DIR=$target
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(arrow config decompress files http intake peer record)
# --target: build scripts and macros are not instrumented.
cargo build --release --locked --target "$triple" "${targets[@]/#/--bin=}"
failed=()
for name in "${targets[@]}"; do
    corpus=$here/corpus/$name
    mkdir -p "$corpus" "$here/artifacts/$name"
    seeds=("$here/seeds/$name")
    [ "$name" != intake ] || seeds+=("$here/../normalizer/corpus/json" "$here/../normalizer/corpus/jsontestsuite")
    [ "$name" != config ] || seeds+=("$here/../docs/examples")
    log=$(mktemp)
    printf '%-11s' "$name"
    if "$target/$triple/release/$name" -max_total_time="$secs" -timeout=30 -rss_limit_mb=2048 -max_len=16384 -close_fd_mask=1 \
        -print_final_stats=1 -artifact_prefix="$here/artifacts/$name/" ${SEED:+-seed="$SEED"} "$corpus" "${seeds[@]}" >"$log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        coverage=$(grep -o 'cov: [0-9]*' "$log" | tail -1)
        printf '%10s runs  %s\n' "$runs" "$coverage"
    else
        failed+=("$name")
        printf 'FAILED\n'
        tail -n 40 "$log"
    fi
    rm -f "$log"
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}; an input is in fuzz/artifacts/, and its binary runs it again: $target/$triple/release/TARGET FILE" >&2
    exit 1
fi
