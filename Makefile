# Assay: build, test and install. `make` or `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# The version comes from VERSION; git refuses to look at a clone of another user's.
export GOFLAGS ?= -buildvcs=false

PREFIX     ?= /usr/local
DESTDIR    ?=
UNITDIR    ?= /etc/systemd/system
CONFDIR    ?= /etc/assay
FUZZTIME   ?= 10s
BENCHCOUNT ?= 6
STRESSROUNDS ?= 34000
BENCHFLAGS ?=
SOAK       ?= 5m

BINARIES := assayd assay assay-hook assay-keeper
UNITS    := assayd.service assay-keeper.service
MODULES  := . e2e tools bench/plot bench/workload
# The containerds under test: modules below e2e/containerd/build that name the versions.
CONTAINERDS     := 2.2 2.4
CONTAINERDTAGS  := no_btrfs no_devmapper no_zfs no_aufs
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
TOOL     := go tool -modfile=$(CURDIR)/tools/go.mod
WORK     := $(CURDIR)/.work
TESTGATE := $(WORK)/testgate

.PHONY: help
help: ## say what can be made (this text)
	@echo "Assay: an on-access malware gate for containers."
	@echo
	@echo "  start here:   make demo         as root, on a fresh Debian or Ubuntu with Go and make"
	@echo "  before a PR:  make fmt lint test"
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  variables:    PREFIX=$(PREFIX) DESTDIR= UNITDIR=$(UNITDIR) CONFDIR=$(CONFDIR)   for install"
	@echo "                FUZZTIME=$(FUZZTIME) BENCHCOUNT=$(BENCHCOUNT)   for fuzz and microbench"
	@echo "                BENCHFLAGS='-rounds 3 -only known,first'   for bench"
	@echo "  environment:  ASSAY_NO_INSTALL=1           refuse with a list instead of installing packages"
	@echo "                ASSAY_ALLOW_SKIP='TestX,...' let these tests skip; any other skip fails the run"

.PHONY: build
build: ## build the static binaries into bin/
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ $(BINARIES:%=./cmd/%)

.PHONY: demo
demo: ## show the gate at work with podman; leaves nothing behind (root)
	@scripts/setup.sh demo
	@$(MAKE) --no-print-directory build
	@demo/run.sh

.PHONY: test
test: setup-test test-unit test-kernel test-e2e ## set up this machine, then run every test (root)

.PHONY: setup-test
setup-test:
	@scripts/setup.sh test

.PHONY: test-unit
test-unit: $(TESTGATE) ## run unit tests and fuzz seeds with the race detector
	$(TESTGATE) -race -timeout 15m -skip '^TestKernel' ./...
	cd tools && go test ./testgate

.PHONY: test-kernel
test-kernel: $(TESTGATE) ## run the tests that put real fanotify marks (root)
	@[[ $$(id -u) == 0 ]] || { echo "test-kernel: run as root: fanotify permission events need CAP_SYS_ADMIN" >&2; exit 1; }
	$(TESTGATE) -race -timeout 15m -count=1 -p 1 -run '^TestKernel' ./...
	$(TESTGATE) -timeout 15m -count=1 -p 1 -run '^TestKernel.*Allocate' ./internal/...

.PHONY: test-stress
test-stress: $(TESTGATE) ## change and open files 100,000 times, and let no change pass (root)
	ASSAY_STRESS_ROUNDS=$(STRESSROUNDS) $(TESTGATE) -timeout 30m -count=1 -run '^TestKernelHammered$$' ./internal/guard

.PHONY: test-e2e
test-e2e: build $(TESTGATE) ## run podman, runc, crun and clamd against the built agent (root)
	@[[ $$(id -u) == 0 ]] || { echo "test-e2e: run as root: the agent and the runtimes need it" >&2; exit 1; }
	cd e2e && $(TESTGATE) -timeout 25m -count=1 -p 1 . ./harness

.PHONY: e2e-fault
e2e-fault: setup-test build $(TESTGATE) ## break scanners, limits, disks and system calls under load (root)
	@[[ $$(id -u) == 0 ]] || { echo "e2e-fault: run as root: the agent and the runtimes need it" >&2; exit 1; }
	cd e2e && ASSAY_SOAK=$(SOAK) $(TESTGATE) -timeout 25m -count=1 -p 1 ./fault

.PHONY: e2e-soak
e2e-soak: setup-test build $(TESTGATE) ## let containers come and go for half an hour, and look for leaks (root; nightly)
	@[[ $$(id -u) == 0 ]] || { echo "e2e-soak: run as root: the agent and the runtimes need it" >&2; exit 1; }
	cd e2e && ASSAY_SOAK=30m $(TESTGATE) -timeout 45m -count=1 -p 1 -run '^TestSoak$$' ./fault

.PHONY: containerd
containerd: ## build the containerds under test into bin/containerd/ (some minutes with a cold cache)
	@for v in $(CONTAINERDS); do \
		mkdir -p bin/containerd/$$v; \
		CGO_ENABLED=0 go build -C e2e/containerd/build/$$v -trimpath -tags '$(CONTAINERDTAGS)' -o $(CURDIR)/bin/containerd/$$v/ tool; \
	done

.PHONY: e2e-containerd
e2e-containerd: build containerd $(TESTGATE) ## run pods on each containerd against the built agent: NRI plugin, hook, faults (root)
	@scripts/setup.sh containerd
	@[[ $$(id -u) == 0 ]] || { echo "e2e-containerd: run as root: the agent and containerd need it" >&2; exit 1; }
	cd e2e && for v in $(CONTAINERDS); do \
		ASSAY_CONTAINERD=$(CURDIR)/bin/containerd/$$v $(TESTGATE) -timeout 25m -count=1 -p 1 ./cri; \
	done

.PHONY: bench-containerd
bench-containerd: setup-test build containerd ## measure what guarding adds to a container's start under containerd (root)
	cd e2e && ASSAY_CONTAINERD=$(CURDIR)/bin/containerd/$(lastword $(CONTAINERDS)) go test -run '^$$' -bench BenchmarkStart -benchtime 1x ./cri

.PHONY: fuzz
fuzz: ## fuzz every parser for FUZZTIME each
	scripts/fuzz.sh $(FUZZTIME)

.PHONY: bench
bench: ## measure what the gate costs, against its floor and its peers (root; docs/benchmarks.md)
	@scripts/setup.sh bench
	@$(MAKE) --no-print-directory build
	@mkdir -p $(WORK)
	go build -o $(WORK)/bench ./bench
	$(WORK)/bench -json $(WORK)/bench.json $(BENCHFLAGS)

.PHONY: bench-plot
bench-plot: ## draw docs/bench.svg from the results of make bench
	go run -C bench/plot . $(WORK)/bench.json $(CURDIR)/docs/bench.svg

.PHONY: microbench
microbench: ## run the packages' Go benchmarks; summary by benchstat
	@mkdir -p $(WORK)
	go test -run '^$$' -bench . -benchmem -count $(BENCHCOUNT) -p 1 -timeout 60m ./... | tee $(WORK)/microbench.txt
	$(TOOL) benchstat $(WORK)/microbench.txt

.PHONY: lint
lint: ## run every linter, on every module and script
	@scripts/setup.sh lint
	scripts/lint.sh $(MODULES)

.PHONY: fmt
fmt: ## format every module (gofumpt)
	@for m in $(MODULES); do (cd $$m && $(TOOL) golangci-lint fmt --config $(CURDIR)/.golangci.yml ./...); done

.PHONY: install
install: ## install binaries, systemd units and a first configuration under DESTDIR and PREFIX
	@for b in $(BINARIES); do [[ -x bin/$$b ]] || { echo "install: bin/$$b is missing: run 'make build' first" >&2; exit 1; }; done
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(UNITDIR) $(DESTDIR)$(CONFDIR)
	install -m 0755 $(BINARIES:%=bin/%) $(DESTDIR)$(PREFIX)/bin/
	for u in $(UNITS); do sed -e 's|@BINDIR@|$(PREFIX)/bin|g' -e 's|@CONFDIR@|$(CONFDIR)|g' deploy/$$u > $(DESTDIR)$(UNITDIR)/$$u; done
	[[ -e $(DESTDIR)$(CONFDIR)/assay.yaml ]] || install -m 0600 deploy/assay.yaml $(DESTDIR)$(CONFDIR)/assay.yaml

.PHONY: uninstall
uninstall: ## remove what install put there; the configuration stays
	rm -f $(BINARIES:%=$(DESTDIR)$(PREFIX)/bin/%) $(UNITS:%=$(DESTDIR)$(UNITDIR)/%)

.PHONY: clean
clean: ## remove everything that was built
	rm -rf bin $(WORK)

$(TESTGATE): $(wildcard tools/testgate/*.go)
	@mkdir -p $(WORK)
	go build -C tools -o $@ ./testgate
