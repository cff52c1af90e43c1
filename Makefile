# Every task of the project. `make` alone lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# SEED replays one run of the simulation or of chaos and prints what happens in it; SEEDS runs that many.
SEED ?=
SEEDS ?=
# Minutes of chaos.
MINUTES ?=
# Seconds a fuzz target.
FUZZ ?= 5
# ARGS are options of the demo.
ARGS ?=
# TEST picks stories of e2e by a part of their names.
TEST ?=
# The reference under which the nodes of e2e find the image.
E2E_IMAGE := capturedrain.test/capturedrain:e2e
# The stories of e2e that print how long people and rows wait.
E2E_MEASURED := a_capture_is_drained a_rolling_restart
SIMULATION := cargo test -p capturedrain-core --features mutants --test simulation

.PHONY: help demo tools build image check test e2e simulate chaos size bench fuzz crd openapi fmt clean

help: ## list the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: ## the tour: a cluster in this process, captures leave in three ways, the sinks are checked; ARGS='--report demo.html'
	@tools/install protobuf
	@cargo build --quiet
	@target/debug/capturedrain demo $(ARGS)

tools: ## install what building and testing need, where it is missing: protoc, etcd, promtool, Kubernetes, CoreDNS, Helm, containerd, buildah
	@tools/install protobuf
	@tools/install promtool >/dev/null
	@printf 'etcd and etcdctl are in %s\n' "$$(dirname "$$(tools/install etcd)")"
	@printf 'kube-apiserver and kubectl are in %s\n' "$$(tools/install kubernetes)"
	@printf 'helm is in %s\n' "$$(dirname "$$(tools/install helm)")"
	@printf 'kubelet is in %s\n' "$$(tools/install kubernetes-nodes)"
	@printf 'coredns is in %s\n' "$$(dirname "$$(tools/install coredns)")"
	@tools/install containers

build: ## build everything for development
	@tools/install protobuf
	cargo build --workspace

image: ## the image: a static binary and nothing else, as target/container/capturedrain.tar
	@tools/install protobuf
	@tools/install containers
	@tools/image

check: ## what has to pass before a commit: format, lints, layers, licences, links
	@tools/install protobuf
	cargo fetch --locked
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy -p capturedrain-core --features mutants --all-targets -- -D warnings
	cargo test --quiet --test tidy

test: ## all tests, on a real etcd and a real Kubernetes API, and the simulation with its mutants
	@tools/install protobuf
	etcd=$$(tools/install etcd) && promtool=$$(tools/install promtool) && \
		kubernetes=$$(tools/install kubernetes) && helm=$$(tools/install helm) && \
		CAPTUREDRAIN_ETCD=$$etcd CAPTUREDRAIN_PROMTOOL=$$promtool \
		CAPTUREDRAIN_KUBERNETES=$$kubernetes CAPTUREDRAIN_HELM=$$helm cargo test --workspace
	$(SIMULATION)

e2e: ## on two real nodes, with the image and the charts: kubectl drain, rollouts, and what breaks meanwhile; as root; TEST=name
	@tools/install protobuf
	@tools/install containers
	etcd=$$(tools/install etcd) && kubernetes=$$(tools/install kubernetes) && helm=$$(tools/install helm) && \
		nodes=$$(tools/install kubernetes-nodes) && coredns=$$(tools/install coredns) && \
		image=$$(tools/image $(E2E_IMAGE)) && \
		CAPTUREDRAIN_ETCD=$$etcd CAPTUREDRAIN_KUBERNETES=$$kubernetes CAPTUREDRAIN_HELM=$$helm \
		CAPTUREDRAIN_KUBERNETES_NODES=$$nodes CAPTUREDRAIN_COREDNS=$$coredns CAPTUREDRAIN_IMAGE=$(CURDIR)/$$image \
		CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$(CURDIR)/tools/alone \
		cargo test --test e2e -- --ignored --test-threads 1 --nocapture $(TEST)

simulate: ## more of the simulation: SEEDS=1000 runs that many, SEED=42 replays one with its log
	$(if $(SEED),CAPTUREDRAIN_SIM_SEED=$(SEED) )$(if $(SEEDS),CAPTUREDRAIN_SIM_SEEDS=$(SEEDS) )$(SIMULATION) -- invariants_hold$(if $(SEED), --nocapture)

chaos: ## kill, pause, cut off and starve real processes in mid-drain, and prove the sinks: MINUTES=2 by default, SEED=42 tells one story again
	@tools/install protobuf
	etcd=$$(tools/install etcd) && CAPTUREDRAIN_ETCD=$$etcd CAPTUREDRAIN_CHAOS_SEED=$(SEED) \
		CAPTUREDRAIN_CHAOS_MINUTES=$(or $(MINUTES),$(if $(SEED),,2)) cargo test --test chaos -- --nocapture

size: ## what a million dispatchers cost: time, slowest event, memory
	cargo test --release -p capturedrain-core --features mutants --test simulation -- --ignored --nocapture a_million

bench: ## measure drains, their cost and the data path, into target/bench; QUICK=1 takes some minutes
	@tools/install protobuf
	@etcd=$$(tools/install etcd) && kubernetes=$$(tools/install kubernetes) && ulimit -n "$$(ulimit -Hn)" && \
		CAPTUREDRAIN_ETCD=$$etcd CAPTUREDRAIN_KUBERNETES=$$kubernetes \
		cargo bench --quiet --no-fail-fast --bench simulated --bench processes --bench throughput --bench operator
	@if [ "$$(id -u)" = 0 ]; then $(MAKE) e2e TEST='$(E2E_MEASURED)'; else echo 'on real nodes nothing is measured without root'; fi

fuzz: ## feed the decoders of what comes from outside with anything; FUZZ=60 does it for 60 s each
	@tools/install protobuf
	@tools/fuzz $(FUZZ)

crd: ## write crds/capturedrain.yaml and the chart's copy of it anew, from the type
	cargo run --quiet -- crd > crds/capturedrain.yaml.new && mv crds/capturedrain.yaml.new crds/capturedrain.yaml
	cp crds/capturedrain.yaml charts/capturedrain-operator/files/capturedrain.yaml

openapi: ## write docs/openapi.json anew, from the handlers of the HTTP API
	cargo run --quiet -- openapi > docs/openapi.json.new && mv docs/openapi.json.new docs/openapi.json

fmt: ## format the code
	cargo fmt --all

clean: ## remove what was built in this tree
	cargo clean
