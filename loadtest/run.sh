#!/usr/bin/env bash
# Runs one of the k6 scripts beside it, with what the script needs around it. `make loadtest S=NAME` calls it.
#
# - BASE_URL and KEY (or KEYS) name a running Sluice. Without BASE_URL one is started in a temporary directory,
#   with eight tenants and a ClickHouse of its own, and removed afterwards.
# - `backpressure` needs somebody to stop and start ClickHouse: for its own Sluice this script does it; for another
#   it runs the commands STOP_CLICKHOUSE and START_CLICKHOUSE.
# - `slow-client` needs a crowd of slow connections: `sluice-bench drip`, started here. Its own Sluice speaks TLS; for
#   another that does, CROWD_CA names the certificate to trust.
# Its exit code is k6's: 0 passed, 99 a threshold failed.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(dirname "$here")
local_dir=${SLUICE_LOCAL:-$repo/.local}
k6=${SLUICE_K6:-$local_dir/k6/k6}
# Where ingestctl and sluice-bench are.
bin=${SLUICE_BIN:-$repo/target/release}
tenants=8
script=${1:-smoke}

say() { printf 'loadtest: %s\n' "$*" >&2; }
die() { printf 'loadtest: error: %s\n' "$*" >&2; exit 1; }

# --- A Sluice of our own ---------------------------------------------------------------------------

own=''
own_pid=''
helper_pid=''

clickhouse_signal() {
    kill "-$1" "$(cat "$own/data/clickhouse/clickhouse.pid")"
}

clean_up() {
    [ -z "$helper_pid" ] || kill "$helper_pid" 2>/dev/null || true
    if [ -n "$own_pid" ]; then
        clickhouse_signal CONT 2>/dev/null || true
        kill -TERM "$own_pid" 2>/dev/null || true
        wait "$own_pid" 2>/dev/null || true
    fi
    [ -z "$own" ] || rm -rf "$own"
}

# The value of one member of the ready line.
ready() {
    sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" "$own/ready"
}

# What each tenant of `quota`'s own Sluice may send.
quota() {
    [ "$script" != quota ] || printf ', quota: {events_per_second: %s, burst: 2s}' "${QUOTA_EVENTS:-500}"
}

start_own() {
    own=$(mktemp -d "${TMPDIR:-/tmp}/sluice-loadtest.XXXXXX")
    local keys=() key number
    {
        # Small enough that an outage fills it while one waits.
        [ "$script" != backpressure ] || echo 'log: {max_bytes: 512MiB}'
        echo 'tenants:'
        for number in $(seq "$tenants"); do
            key=slc_load${number}_$(openssl rand -hex 24)
            keys+=("$key")
            echo "  - {id: load$number, keys: [{sha256: \"$(printf %s "$key" | openssl dgst -sha256 -r | cut -d' ' -f1)\"}]$(quota)}"
        done
    } >"$own/sluice.yaml"
    [ -x "$bin/ingestctl" ] || die "$bin/ingestctl is not built: run 'make build', or name a running Sluice with BASE_URL and KEY."
    local tls=()
    case $script in
        tls | slow-client)
            tls=(--tls self-signed)
            export TLS_INSECURE=1
            CROWD_CA=$own/data/tls/self-signed.crt
            ;;
    esac
    "$bin/ingestctl" up "${tls[@]}" --config "$own/sluice.yaml" --data-dir "$own/data" --listen 127.0.0.1:0 \
        --admin-listen 127.0.0.1:0 --clickhouse-port 0 --json >"$own/ready" 2>"$own/log" &
    own_pid=$!
    local waited=0
    until [ -s "$own/ready" ]; do
        kill -0 "$own_pid" 2>/dev/null && [ $((waited += 1)) -lt 600 ] || { tail -n 15 "$own/log" >&2; die "Sluice did not start."; }
        sleep 0.1
    done
    BASE_URL=$(ready edge)
    ADMIN_URL=$(ready admin)
    KEYS=$(IFS=,; echo "${keys[*]}")
    export BASE_URL ADMIN_URL KEYS
    say "a Sluice of its own at $BASE_URL, in $own"
}

# --- What goes on beside k6 ------------------------------------------------------------------------

# Whole seconds of 90, 90s, 5m, 2h.
seconds() {
    case $1 in
        *ms) die "DURATION=$1: whole seconds are needed here." ;;
        *h) echo $((${1%h} * 3600)) ;;
        *m) echo $((${1%m} * 60)) ;;
        *) echo "${1%s}" ;;
    esac
}

# Holds no stream of ours, should it outlive us.
pause() {
    sleep "$1" </dev/null >/dev/null 2>&1
}

outage() {
    pause "${OUTAGE_AFTER_S:-5}"
    say 'stopping ClickHouse'
    if [ -n "$own" ]; then clickhouse_signal STOP; else bash -c "$STOP_CLICKHOUSE"; fi
    pause "${OUTAGE_S:-40}"
    say 'starting ClickHouse'
    if [ -n "$own" ]; then clickhouse_signal CONT; else bash -c "$START_CLICKHOUSE"; fi
}

crowd() {
    local third=$(($(seconds "${DURATION:-60s}") / 3)) address=${BASE_URL#*://} idle=()
    # Over plain HTTP there is no handshake.
    [ -z "${CROWD_CA:-}" ] || idle=(--ca "$CROWD_CA" --handshakes "${HANDSHAKES:-500}")
    exec "$bin/sluice-bench" drip --address "${address%%/*}" --key "${CROWD_KEY:-${KEYS##*,}}" \
        --connections "${CROWD:-2000}" "${idle[@]}" --after "$third" --seconds "$((third * 2))" >&2
}

beside() {
    case $script in
        backpressure)
            [ -n "$own" ] || [ -n "${STOP_CLICKHOUSE:+${START_CLICKHOUSE:-}}" ] ||
                die 'set STOP_CLICKHOUSE and START_CLICKHOUSE to the commands that do it, or leave BASE_URL out.'
            outage &
            ;;
        slow-client)
            [ -x "$bin/sluice-bench" ] || die "$bin/sluice-bench is not built: run 'cargo build --release --bin sluice-bench'."
            crowd &
            ;;
        *) return 0 ;;
    esac
    helper_pid=$!
}

# --- The order -------------------------------------------------------------------------------------

[ -f "$here/$script.js" ] || die "there is no '$script': $(cd "$here" && ls -- *.js | sed 's/\.js$//' | paste -sd ' ')"
[ -x "$k6" ] || die "$k6 is missing: run 'make setup'."
# The crowd needs a descriptor for each connection.
ulimit -n "$(ulimit -Hn)"
trap clean_up EXIT
[ -n "${BASE_URL:-}" ] || start_own
KEYS=${KEYS:-${KEY:-}}
export KEYS
export SUMMARY=${SUMMARY:-$local_dir/loadtest/$script.json}
mkdir -p "$(dirname "$SUMMARY")"
beside
code=0
"$k6" run --quiet --no-usage-report --address '' "$here/$script.js" || code=$?
say "the same as JSON: $SUMMARY"
exit "$code"
