# Every task of the project. `make` alone lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# SEED replays one run of the simulation and prints what happened in it; SEEDS runs that many.
SEED ?=
SEEDS ?=
SIMULATION := cargo test -p capturedrain-core --features mutants --test simulation

.PHONY: help tools build release check test simulate demo fmt clean

help: ## list the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

tools: ## install what building and testing need, where it is missing: protoc and etcd
	@tools/install protobuf
	@tools/install etcd >/dev/null

build: ## build the binary for development: target/debug/capturedrain
	@tools/install protobuf
	cargo build --workspace

release: ## build the binary to ship: target/release/capturedrain
	@tools/install protobuf
	cargo build --release

check: ## what has to pass before a commit: format, lints, layers, licences, links
	@tools/install protobuf
	cargo fetch --locked
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test --quiet --test tidy

test: ## all tests, on a real etcd, and the simulation with its mutants
	@tools/install protobuf
	etcd=$$(tools/install etcd) && CAPTUREDRAIN_ETCD=$$etcd cargo test --workspace
	$(SIMULATION)

simulate: ## more of the simulation: SEEDS=1000 runs that many, SEED=42 replays one with its log
	$(if $(SEED),CAPTUREDRAIN_SIM_SEED=$(SEED) )$(if $(SEEDS),CAPTUREDRAIN_SIM_SEEDS=$(SEEDS) )$(SIMULATION)$(if $(SEED), -- --nocapture)

demo: ## a whole cluster in one process, drained, stopped and killed while it replicates
	@tools/install protobuf
	cargo run --quiet -- demo

fmt: ## format the code
	cargo fmt --all

clean: ## remove what was built in this tree
	cargo clean
