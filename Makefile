# `make help` lists the targets. Everything works from a bare clone; downloads stay under .local/.

.DEFAULT_GOAL := help
SHELL := bash

# T=word runs the tests whose name contains it.
T ?=
# S=name is the load test to run.
S ?= smoke
# One profile for tests and clippy: optimised, with assertions, and with the points at which tests make
# processes fail; nothing is built twice.
PROFILE := --profile ci --locked --features failpoints
# Tests with a broker that run at once.
BROKERS := 3
# Where cargo puts release binaries.
RELEASE := $(or $(CARGO_TARGET_DIR),target)/release
BINARIES := sluice-edge sluice-normalizer sluice-sink-writer ingestctl
# And those that tests run.
CIBIN := $(or $(CARGO_TARGET_DIR),target)/ci
# W=1 keeps the counts of `make instructions`.
W ?=
# How long `make torture` goes on, and `make fuzz` with each target, in seconds.
SECS ?= 600
CARGO_DENY_VERSION := 0.20.2

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: ## install what is missing (no network once it is there)
	@deploy/setup.sh

.PHONY: build
build: setup ## the four release binaries
	cargo build --release --locked $(BINARIES:%=--bin %)
	@for binary in $(BINARIES); do \
		grep -q SLUICE_FAILPOINTS "$(RELEASE)/$$binary"; \
		case $$? in \
			1) ;; \
			0) echo "$(RELEASE)/$$binary was built with failpoints, which are for tests: it must not be released" >&2; exit 1 ;; \
			*) exit 1 ;; \
		esac; \
	done

.PHONY: run
run: build ## start everything on this machine, with a sample; Ctrl-C drains and ends
	@lib=$${SLUICE_LOCAL:-$(CURDIR)/.local}/clickhouse/libchdb.so; [ -n "$$SLUICE_CLICKHOUSE_LIB" ] || [ ! -e "$$lib" ] || export SLUICE_CLICKHOUSE_LIB="$$lib"; \
	exec $(RELEASE)/ingestctl up --sample

# Services and tests in one build: apart, each has features of its own, and every crate is compiled twice. Tests with a broker
# wait more than they work, so that more of them run at once than there are processors; both halves run, whatever fails.
.PHONY: test
test: setup ## run every test, or with T=word those whose name contains it
	cargo build $(PROFILE) --workspace --bins --tests
ifdef T
	cargo test $(PROFILE) --workspace --no-fail-fast -- $(T)
else
	failed=0; \
	cargo test $(PROFILE) --workspace --no-fail-fast -- --skip kafka || failed=1; \
	cargo test $(PROFILE) --workspace --no-fail-fast --tests -- kafka --test-threads $(BROKERS) || failed=1; \
	exit $$failed
endif

.PHONY: instructions
instructions: setup ## hold what each stage takes in instructions to bench/instructions.json (W=1 keeps those of now)
	cargo build $(PROFILE) --workspace --bins --tests
	$(CIBIN)/sluice-bench instructions --percent 10 $(if $(W),--write)

.PHONY: torture
torture: setup ## kills, full disks, refused rows, broken networks under load for SECS=n seconds (SEED=s again, ROUND=k from there, LOG=kafka)
	cargo build $(PROFILE) --workspace --bins
	$(CIBIN)/sluice-torture --secs $(SECS) $(if $(SEED),--seed $(SEED)) $(if $(ROUND),--round $(ROUND)) $(if $(LOG),--log $(LOG))

.PHONY: mutants
mutants: ## switch off what each rule is kept by, and see its tests fail: T=R7, or T=word of the list, for some
	cargo build $(PROFILE) --workspace --bin sluice-mutants
	$(CIBIN)/sluice-mutants $(if $(T),--about '$(T)')

.PHONY: fuzz
fuzz: setup ## each parser of outside bytes for SECS=n seconds, or one of them: T=intake; see fuzz/README.md
	SECS=$(SECS) fuzz/run.sh $(T)

.PHONY: lint-quick
lint-quick: ## formatting and clippy
	cargo fmt --all --check
	cargo clippy $(PROFILE) --workspace --all-targets -- -D warnings
	@# What is built without failpoints, as a release is.
	cargo clippy --profile ci --locked --bins -- -D warnings

.PHONY: lint
lint: setup lint-quick ## the same, and the licences and sources of what we depend on
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny@$(CARGO_DENY_VERSION)
	cargo deny --all-features check bans licenses sources

.PHONY: bench
bench: build ## Sluice beside ClickHouse fed directly, half a minute; longer: see bench/README.md
	cargo build --release --locked --bin sluice-bench
	$(RELEASE)/sluice-bench compare --seconds 5 --dir $(RELEASE)
	@echo "longer: $(RELEASE)/sluice-bench compare --seconds 20 --rounds 5 (--help lists what else can be set)"

.PHONY: loadtest
loadtest: setup ## load a running Sluice (BASE_URL=… KEY=…), or one of its own, with k6; S=smoke: see loadtest/README.md
	$(if $(BASE_URL),,cargo build --release --locked --bin ingestctl)
	$(if $(filter slow-client,$(S)),cargo build --release --locked --bin sluice-bench)
	@SLUICE_BIN=$(RELEASE) loadtest/run.sh $(S)

.PHONY: fmt
fmt: ## format the code
	cargo fmt --all

.PHONY: clean
clean: ## remove what was built (downloads in .local/ and data in data/ stay)
	cargo clean
