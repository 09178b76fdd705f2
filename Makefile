# `make help` lists the targets. Everything that a target needs, it installs by itself.
SHELL := /bin/bash
# The distribution's is built with profiles; one that was built without runs torpord a tenth slower.
export PYTHON ?= $(or $(wildcard /usr/bin/python3.11),python3.11)
VENV := .venv
BIN := $(VENV)/bin
CARGO_TARGET := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
.DEFAULT_GOAL := help
.PHONY: help setup build demo test lint docs fmt conformance soak test-stock-kvm bench-guest bench-images bench-snapshot bench-clones bench-api bench-environments bench-density bench-wake bench-peers test-examples rootfs lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## Python environment and system packages that a build needs

$(VENV)/.packages: requirements.lock scripts/system-packages
	scripts/system-packages build
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	touch $@

# The editable installation makes the `torpor` command; the binaries are put beside it by `build`.
$(VENV)/.installed: $(VENV)/.packages pyproject.toml
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

build: $(VENV)/.installed ## .venv/bin/torpor and its binaries, release profile
	@# One by one, as the wheel builds them: together they would share features, and all be built anew.
	cargo build --release --locked --quiet -p torpor-vmm
	cargo build --release --locked --quiet -p torpor-proxy
	@$(BIN)/python -m compileall -q src # so that the command need not, whatever the environment says
	@for binary in torpor-vmm torpor-proxy; do \
	  cmp --silent $(CARGO_TARGET)/release/$$binary $(BIN)/$$binary \
	    || install $(CARGO_TARGET)/release/$$binary $(BIN)/$$binary; \
	done

demo: build ## examples/bun-counter is deployed, sleeps, and is woken by requests
	@scripts/system-packages test
	@$(BIN)/python -m tests.demo

test: build ## everything that guards the project
	$(BIN)/python scripts/run_tests.py

lint: setup ## ruff, mypy, cargo fmt --check, cargo clippy
	$(BIN)/python scripts/run_tests.py --only lint

docs: setup ## documents that are made from the source: docs/syscalls.md
	TORPOR_REWRITE_DOCS=1 cargo test --locked --quiet -p torpor-kernel --test syscalls

fmt: setup ## format Python and Rust
	$(BIN)/ruff check --fix --quiet
	$(BIN)/ruff format --quiet
	cargo fmt --all

test-stock-kvm: build ## VM process and guest kernel on a stock kernel's kvm-amd, in emulation
	$(BIN)/python -m pytest tests/stock_kvm

conformance: build ## other people's tests, both ways; writes docs/conformance.md
	$(BIN)/python -m tests.conformance

soak: build rootfs ## minutes of load and faults, twice (SOAK_MINUTES, default 10)
	$(BIN)/python -m tests.soak
	$(BIN)/python -m tests.snapshot.soak
	FENCING_VMS=200 FENCING_ROUNDS=100 $(BIN)/python -m pytest tests/faults/test_fencing.py
	FAULTS_VMS=50 FAULTS_S=600 $(BIN)/python -m pytest tests/faults/test_identities.py
	SIGKILL_OPERATIONS=10000 $(BIN)/python -m pytest tests/faults/test_sigkill.py

bench-guest: build ## start-up, memory and speed of a microVM beside native Linux
	@scripts/system-packages test
	@$(BIN)/python -m tests.bench.guest
	@$(BIN)/python -m tests.bench.network

bench-snapshot: build rootfs ## waking, sleeping and sizes of VMs of one template
	@$(BIN)/python -m tests.bench.snapshot

bench-clones: build rootfs ## random numbers in a thousand clones
	@$(BIN)/python -m tests.bench.clones

bench-images: build ## speed, memory and size of making images
	@scripts/system-packages test
	@$(BIN)/python -m tests.bench.images

bench-proxy: build rootfs ## what the proxy adds to a request, and its memory
	@scripts/system-packages test
	@$(BIN)/python -m tests.bench.proxy

bench-api: build ## torpord with a million instances: speed, memory, start-up
	@$(BIN)/python -m tests.bench.api

bench-environments: build rootfs ## disk of instances that differ in one environment variable
	@$(BIN)/python -m tests.bench.environments

BENCH = $(BIN)/torpor --data build/bench/images bench # bases and images are made once, there

bench-density: build ## 50,000 instances started, asked, asleep, audited (BENCH_COUNT)
	@$(BENCH) density --count $(or $(BENCH_COUNT),50000)

bench-wake: build ## waking instances, alone and under load, of five programs
	@scripts/system-packages test
	@$(BENCH) wake

bench-peers: build ## the same program as a process, in containers, as a microVM
	@scripts/system-packages test
	@$(BENCH) peers

test-examples: build ## sample applications, natively and in microVMs; makes base images
	@scripts/system-packages test
	@$(BIN)/python -m tests.images.examples

rootfs: setup ## root file systems for tests and demo, below build/rootfs
	$(BIN)/python -m tests.rootfs

lock: ## renew requirements.lock from pyproject.toml
	scripts/lock

clean: ## remove what was built, downloads included
	rm -rf build dist $(VENV) target crates/kernel-image/target
