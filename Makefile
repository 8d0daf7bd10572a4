SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

cache := $(or $(THINSNAP_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/thinsnap)
# The cache has a Go only if the machine's own would not do.
export PATH := $(cache)/go/bin:$(PATH):/usr/local/go/bin

version := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
revision := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
ldflags := -s -w -X main.version=$(version) -X main.revision=$(revision)

setup := integration/setup.sh
reports := .cache
bench := $(CURDIR)/$(reports)/bench
disk ?= $(bench).disk
FUZZTIME ?= 10s
CUTS ?= 200
POINTS ?= 200
gotestsum := $(cache)/bin/gotestsum --format pkgname --format-hide-empty-pkg

# Guests get the kernel of this Debian suite, such as trixie or sid; by default, of the machine's own release.
KERNEL ?=
ifneq ($(KERNEL),)
export THINSNAP_KERNEL := $(KERNEL)
endif

.PHONY: bench build clean deb demo distclean fuzz help image kernel-test lint plain-test setup test torture unit vuln

build: ## Build bin/thinsnap
	@$(setup) go
	@CGO_ENABLED=0 go build -trimpath -ldflags '$(ldflags)' -o bin/thinsnap ./cmd/thinsnap

deb: ## Build bin/thinsnap_VERSION_GOARCH.deb, for amd64 or arm64
	@$(setup) go
	@packaging/debian/build.sh bin

image: ## Build .cache/image.tar, an OCI archive for docs/kubernetes; needs root
	@$(setup) packages
	@packaging/image/build.sh $(reports)/image.tar

test: setup plain-test kernel-test ## Install what the tests need, then run them all

# The tests that cut a guest's power leave half of two processors to the rest.
plain-test:
	@$(MAKE) --no-print-directory --output-sync=line --jobs=2 FUZZTIME=2s unit fuzz lint vuln

setup: ## Install what the tests and the demo need; see integration/setup.sh
	@$(setup)

# The skipped tests that kernel-test will run are not worth a list. -count=1: power is to be cut every time. That takes longest,
# and comes first.
unit: ## Run the tests that need no device-mapper, with the race detector
	@$(setup) packages packaging kernel debian chromium vmrun gotestsum containerd nerdctl
	@mkdir -p $(reports) && rm -f $(reports)/unit.json
	@echo '== unit tests, with the race detector'
	@THINSNAP_KERNEL_TESTS=0 $(gotestsum) --hide-summary skipped --jsonfile $(reports)/unit.json -- -race -count=1 -timeout 15m ./integration/powercut ./...

# With FUZZTIME=10m it is thorough; as part of `make test` it is brief.
fuzz: ## Run every fuzz target for FUZZTIME
	@$(setup) packages
	@echo '== fuzz targets, $(FUZZTIME) each'
	@integration/fuzz.sh $(FUZZTIME)

lint: ## Run the linters that .golangci.yml names
	@$(setup) packages lint
	@echo '== lint'
	@$(cache)/bin/golangci-lint run ./...

vuln: ## Look for known vulnerabilities in what thinsnap is built from
	@$(setup) packages vuln
	@echo '== known vulnerabilities'
	@integration/vuln.sh $(cache)/bin/govulncheck

# FLAGS go to integration/kerneltest. With FLAGS='-run TestName ./devmapper' it is that test alone.
kernel-test: build ## Run the tests that need device-mapper, in a VM if this machine has none
	@$(setup)
	@integration/image/build.sh >/dev/null
	@integration/failpoint/build.sh bin/thinsnap-failpoints
	@rm -rf $(reports)/deb && packaging/debian/build.sh $(reports)/deb >/dev/null
	@mkdir -p $(reports) && rm -f $(reports)/kernel*.json
	@go build -o $(reports)/kerneltest ./integration/kerneltest
	@echo "== tests with a real kernel, in the $$($(cache)/bin/vmrun -where)"
	@$(gotestsum) --jsonfile $(reports)/kernel.json --raw-command -- $(reports)/kerneltest $(FLAGS)
ifndef FLAGS
	@echo '== the device-mapper layer again, with udevd running'
	@$(gotestsum) --jsonfile $(reports)/kernel-udev.json --raw-command -- $(reports)/kerneltest -udev ./devmapper/...
	@echo '== snapshots made and removed, with udevd running'
	@$(gotestsum) --jsonfile $(reports)/kernel-cycles.json --raw-command -- $(reports)/kerneltest -udev -short -run CyclesWithUdev ./snapshotter
	@echo '== all operations at once again, with the race detector'
	@$(gotestsum) --jsonfile $(reports)/kernel-race.json --raw-command -- $(reports)/kerneltest -race -run TestModelOnTheKernel ./snapshotter
endif

# FLAGS go to integration/bench. With FLAGS='-cases first,child -snapshotters thinsnap,overlayfs' it is that part alone.
bench: build ## Compare thinsnap with containerd's own snapshotters, in a VM if this machine has no device-mapper
	@$(setup) packages kernel debian vmrun containerd nerdctl
	@integration/image/build.sh >/dev/null
	@mkdir -p $(reports) && rm -f $(disk) $(bench).json
	@go test -c -o $(bench).test ./integration/bench
	@echo "== benchmarks, in the $$($(cache)/bin/vmrun -where)"
	@trap 'rm -f $(disk)' EXIT; cd integration/bench; \
		THINSNAP_KERNEL_TESTS=1 $(cache)/bin/vmrun -timeout 50m -memory 10240 -disk $(disk):60GiB -share $(CURDIR)/$(reports) \
		$(bench).test -test.run '^$$' -test.bench . -test.benchtime 1x -test.timeout 45m -json $(bench).json $(FLAGS)
ifndef FLAGS
	@echo '== with up to 100,000 snapshots, without a kernel'
	@THINSNAP_BENCH_JSON=$(bench)-scale.json go test -run '^$$' -bench Scale -benchtime 1x ./integration/bench/scale
endif

# FLAGS go to integration/powercut/torture. With FLAGS='-seed N' it does again what a run with that seed did, -filesystem xfs
# is for the other file system, and -cpus 1 leaves more of this machine to others.
torture: build ## Cut a VM's power CUTS times, and replay its writes up to POINTS points, and see that nothing is lost
	@$(setup) packages kernel debian containerd nerdctl
	@mkdir -p $(reports)
	@go build -o $(reports)/torture ./integration/powercut/torture
	@$(reports)/torture -cuts $(CUTS) -points $(POINTS) $(FLAGS)

demo: ## Show thinsnap at work with containerd and a real image
	@integration/demo.sh

clean: ## Remove what was built here
	rm -rf bin $(reports)

distclean: clean ## Remove the cache of tools and kernels, too
	chmod -R u+w '$(cache)' 2>/dev/null || true
	rm -rf '$(cache)'

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
