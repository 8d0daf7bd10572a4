SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

cache := $(or $(THINSNAP_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/thinsnap)
# The cache has a Go only if the machine has none that can build this module.
export PATH := $(cache)/go/bin:$(PATH):/usr/local/go/bin

# A tag may contain shell syntax, so the shell gets it as a variable, never as text.
export THINSNAP_VERSION := $(shell git describe --tags --always --dirty 2>/dev/null | sed 's/^v\([0-9]\)/\1/' | tr -cd 'A-Za-z0-9._+~-')
export THINSNAP_REVISION := $(shell git rev-parse HEAD 2>/dev/null)
ldflags := -s -w -X main.version=$${THINSNAP_VERSION:-unknown} -X main.revision=$${THINSNAP_REVISION:-unknown}

setup := integration/setup.sh
for-unit-tests := packages packaging kernel debian chromium vmrun gotestsum containerd nerdctl nfpm kustomize
reports := .reports
bench := $(CURDIR)/$(reports)/bench
disk ?= $(bench).disk
FUZZTIME ?= 10s
CUTS ?= 200
POINTS ?= 200
REPEAT ?= 50
MODELS ?= 10
HISTORIES ?= 400
CYCLES ?= 20
gotestsum := $(cache)/bin/gotestsum --format pkgname --format-hide-empty-pkg

# The Debian suite of the guests' kernel, such as trixie or sid; by default, the machine's own release.
KERNEL ?=
ifneq ($(KERNEL),)
export THINSNAP_KERNEL := $(KERNEL)
endif
kernel-reports := $(reports)$(addprefix /,$(KERNEL))
# Guests have one processor by default, and one guest runs per processor of the machine, which is fastest. Guests of two
# processors also show races: the tests with other kernels, with udevd and of random histories use them.
cpus := $(if $(KERNEL),-cpus 2)
# The daemon's tests have two processors: with one, an old pool on a full disk once left a damaged inode (TestFullDisk).
one-cpu := $(if $(KERNEL),,$$(go list ./... | grep -v /internal/daemon$$))
# Packages whose tests make or remove devices, which udevd opens; test-all runs the whole layer.
udev-tests := $(if $(THINSNAP_THOROUGH),./devmapper/...,./devmapper ./devmapper/blockdev ./devmapper/pool/... ./devmapper/thin)
# The kernels of test-all besides the machine's own: the next Debian's and the newest.
KERNELS := trixie sid

# Packages whose tests wait for timers or goroutines. The histories have a target of their own.
timed := ./cmd/thinsnap ./metadata ./snapshotter/... ./devmapper ./devmapper/blockdev ./devmapper/pool \
	./internal/admin ./internal/autoextend ./internal/daemon ./internal/dmtest ./internal/rpc ./internal/unixsocket

.PHONY: bench build clean deb demo distclean full-disks fuzz help histories image kernel-test kubelet lint matrix plain-test release repeat rpm setup tar test test-all \
	test-browser test-deb test-failpoints test-guest test-image test-images test-release test-thorough-image torture unit vuln

build: ## Build bin/thinsnap
	@$(setup) go
	@CGO_ENABLED=0 go build -trimpath -ldflags "$(ldflags)" -o bin/thinsnap ./cmd/thinsnap

deb: ## Build bin/thinsnap_VERSION_GOARCH.deb, for amd64 or arm64
	@$(setup) go nfpm
	@packaging/build.sh bin deb

rpm: ## Build bin/thinsnap-VERSION-1.x86_64.rpm, or with GOARCH=arm64 the one for aarch64
	@$(setup) go nfpm
	@packaging/build.sh bin rpm

tar: ## Build bin/thinsnap-VERSION-linux-GOARCH.tar.gz, with the static program and its other files
	@$(setup) go
	@packaging/build.sh bin tar

# ARCHITECTURES: amd64, arm64 or both; by default, the machine's own.
image: ## Build .reports/image.tar, an OCI archive for deploy/kubernetes
	@$(setup) packages nfpm
	@packaging/image/build.sh $(reports)/image.tar $(ARCHITECTURES)

# VERSION is for a trial; without it the commit needs a tag. A VERSION in the environment is ignored: it may be another
# program's.
release: export THINSNAP_PACKAGE_VERSION := $(if $(filter command,$(origin VERSION)),$(VERSION))
release: ## Make all files of a release in bin/release, or in the directory RELEASE; see docs/releases.md
	@$(setup) packages nfpm sbom
	@packaging/release.sh '$(or $(RELEASE),bin/release)'

test-image: ## Build the image, and run every program in it that thinsnap executes; needs root: a part of test-all
	@$(setup) packages nfpm qemu-user
	@packaging/image/build.sh $(reports)/image.tar amd64 arm64
	@THINSNAP_IMAGE=$(CURDIR)/$(reports)/image.tar \
		THINSNAP_QEMU_AARCH64=$(cache)/debian/qemu-user-static/usr/bin/qemu-aarch64-static go test -count=1 ./packaging/image

test-release: ## Make a release twice, and compare the files: a part of test-all
	@$(setup) packages nfpm sbom
	@THINSNAP_RELEASE=1 go test -count=1 -timeout 60m -run 'TestRelease$$' ./packaging

test: setup plain-test kernel-test ## Install the requirements of the tests, and run the tests as CI does: at most 35 minutes

# Each part runs even if another fails. The tests of integration/vm need uml.
test-all: export THINSNAP_THOROUGH := 1
test-all: ## Run test, then other kernels, repetitions, longer histories, fuzzing and power cuts: at most 3 hours
	@failed=; part() { echo "== make $$*"; $(MAKE) --no-print-directory "$$@" || failed+=" ($$*)"; }; \
	$(setup) uml || failed+=" (setup of uml)"; \
	part test; \
	for kernel in $(KERNELS); do \
		part kernel-test KERNEL=$$kernel; \
		KERNEL=$$kernel .ci/summary $(reports)/unit.json $(reports)/vuln.json $(reports)/$$kernel/kernel*.json || failed+=" (summary of $$kernel)"; \
	done; \
	part repeat; \
	part histories; \
	part full-disks; \
	part fuzz FUZZTIME=1m; \
	part test-image; \
	part kubelet; \
	part test-release; \
	part torture CUTS=20 POINTS=50; \
	part torture CUTS=10 POINTS=0 FLAGS='-direct-lvm -filesystem xfs'; \
	[ -z "$$failed" ] || { echo "failed:$$failed"; exit 1; }

# Two jobs, because the tests that cut a guest's power use one processor.
plain-test:
	@$(MAKE) --no-print-directory --output-sync=line --jobs=2 FUZZTIME=1s unit fuzz lint vuln

setup: ## Install the requirements of the tests and the demo; see integration/setup.sh
	@$(setup)

# Skipped tests are not listed, because kernel-test runs them. -count=1 makes every run cut the power. The power cuts take
# longest, so they start first.
unit: ## Run the tests that need no device-mapper, with the race detector: half of test
	@$(setup) $(for-unit-tests)
	@mkdir -p $(reports) && rm -f $(reports)/unit.json
	@echo '== unit tests, with the race detector'
	@THINSNAP_KERNEL_TESTS=0 $(gotestsum) --hide-summary skipped --jsonfile $(reports)/unit.json -- -race -count=1 -timeout 15m ./integration/powercut ./...

# FUZZTIME=10m is thorough; `make test` uses 1s.
fuzz: ## Run every fuzz target for FUZZTIME
	@$(setup) packages
	@echo '== fuzz targets, $(FUZZTIME) each'
	@integration/fuzz.sh $(FUZZTIME)

lint: ## Run the linters of .golangci.yml, and actionlint for GitHub's workflows
	@$(setup) packages lint
	@echo '== lint'
	@$(cache)/bin/golangci-lint run ./...
	@$(cache)/bin/actionlint

vuln: ## Look for known vulnerabilities in thinsnap's dependencies and in Go
	@$(setup) packages vuln
	@mkdir -p $(reports) && rm -f $(reports)/vuln.json
	@echo '== known vulnerabilities'
	@integration/vuln.sh $(cache)/bin/govulncheck $(reports)/vuln.json

# FLAGS go to integration/kerneltest: FLAGS='-run TestName ./devmapper' runs only that test, and builds only its
# requirements.
kernel-test: test-guest ## Run the tests that need device-mapper, in a VM if this machine has none: half of test
	@mkdir -p $(kernel-reports) && rm -f $(kernel-reports)/kernel*.json
	@go build -o $(reports)/kerneltest ./integration/kerneltest
	@needs=$$($(reports)/kerneltest -needs $(FLAGS)); [ -z "$$needs" ] || $(MAKE) --no-print-directory $$needs
	@echo "== tests with a real kernel, in the $$($(cache)/bin/vmrun -where)"
	@$(gotestsum) --jsonfile $(kernel-reports)/kernel.json --raw-command -- $(reports)/kerneltest $(cpus) $(or $(FLAGS),$(one-cpu))
ifndef FLAGS
ifeq ($(KERNEL),)
	@echo '== the daemon, in a guest of two processors'
	@$(gotestsum) --jsonfile $(kernel-reports)/kernel-daemon.json --raw-command -- $(reports)/kerneltest -cpus 2 ./internal/daemon
endif
	@echo '== the device-mapper layer again, with udevd running'
	@$(gotestsum) --jsonfile $(kernel-reports)/kernel-udev.json --raw-command -- $(reports)/kerneltest -cpus 2 -udev -short $(udev-tests)
	@echo '== snapshots made and removed, with udevd running'
	@$(gotestsum) --jsonfile $(kernel-reports)/kernel-cycles.json --raw-command -- $(reports)/kerneltest -cpus 2 -udev -short -run CyclesWithUdev ./snapshotter
	@echo '== all operations at once again, with the race detector'
	@$(gotestsum) --jsonfile $(kernel-reports)/kernel-race.json --raw-command -- $(reports)/kerneltest -cpus 2 -race -run TestModelOnTheKernel ./snapshotter
ifeq ($(KERNEL),)
	@$(MAKE) --no-print-directory system-test
endif
endif

# These tests boot guests with a system of their own, two at a time, without kerneltest.
.PHONY: system-test
system-test: test-guest test-images test-deb ## Run the tests of the package and the units on a Debian with systemd, in VMs
	@$(setup) systemd
	@mkdir -p $(kernel-reports) && rm -f $(kernel-reports)/kernel-systemd.json
	@echo '== a Debian with systemd'
	@THINSNAP_SYSTEMD_TESTS=1 $(gotestsum) --jsonfile $(kernel-reports)/kernel-systemd.json -- \
		-count=1 -parallel 2 -timeout 40m $(or $(FLAGS),$(if $(THINSNAP_THOROUGH),,-run TestQuickStart)) ./integration/systemd

# Targets of integration/kerneltest/needs.go.
test-guest:
	@$(setup) packages kernel debian vmrun gotestsum

test-images: build
	@$(setup) containerd nerdctl kustomize $(if $(THINSNAP_THOROUGH),containerd-1.7 containerd-2.1 containerd-2.3 docker docker-26)
	@integration/image/build.sh >/dev/null

test-browser:
	@$(setup) chromium

test-failpoints:
	@$(setup) gofail
	@integration/failpoint/build.sh bin/thinsnap-failpoints

# Only for the tests of test-all.
test-thorough-image:
	@$(setup) packages nfpm
	@$(if $(THINSNAP_THOROUGH),packaging/image/build.sh $(reports)/image.tar amd64 arm64,:)

# Uncompressed, because an emulated guest installs it several times, and decompresses slowly.
test-deb:
	@$(setup) packaging nfpm
	@rm -rf $(reports)/deb && THINSNAP_DEB_COMPRESSION=none packaging/build.sh $(reports)/deb deb >/dev/null

# -short leaves out the tests that boot guests.
repeat: ## Run the unit tests on one processor, then those with timers REPEAT times on 1, 2 and 8: a part of test-all
	@$(setup) $(for-unit-tests)
	@mkdir -p $(reports)
	@echo '== unit tests, on one processor'
	@THINSNAP_KERNEL_TESTS=0 $(gotestsum) --hide-summary skipped --jsonfile $(reports)/one.json -- -short -cpu 1 -count=1 ./...
	@echo '== tests with timers and goroutines, $(REPEAT) times on 1, 2 and 8 processors'
	@THINSNAP_KERNEL_TESTS=0 $(gotestsum) --hide-summary skipped --jsonfile $(reports)/repeat.json -- \
		-short -cpu 1,2,8 -count=$(REPEAT) -skip 'TestModel|TestListOfLargeRecords|TestManySnapshots' -timeout 60m $(timed)

histories: test-guest ## Run each TestModel MODELS times, and TestHistories with HISTORIES histories: a part of test-all
	@mkdir -p $(reports)
	@go build -o $(reports)/kerneltest ./integration/kerneltest
	@echo '== histories, with the race detector'
	@THINSNAP_KERNEL_TESTS=0 $(gotestsum) --jsonfile $(reports)/histories.json -- \
		-race -count=$(MODELS) -run TestModel -timeout 30m ./metadata ./snapshotter
	@echo '== histories with a real kernel'
	@$(gotestsum) --jsonfile $(reports)/histories-kernel.json --raw-command -- \
		$(reports)/kerneltest -cpus 2 -count $(MODELS) -run TestModelOnTheKernel ./snapshotter
	@echo '== a thousand snapshots made and removed, with udevd running'
	@$(gotestsum) --jsonfile $(reports)/histories-udev.json --raw-command -- $(reports)/kerneltest -cpus 2 -udev -run CyclesWithUdev ./snapshotter
	@echo '== layers of $(HISTORIES) random histories of file systems, compared with those of containerd'
	@THINSNAP_HISTORIES=$(HISTORIES) $(gotestsum) --jsonfile $(reports)/histories-diff.json --raw-command -- \
		$(reports)/kerneltest -timeout 12h -run 'TestHistories$$' ./internal/diff

kubelet: test-guest test-images ## Build a kubelet, and run pods on thinsnap with it: a part of test-all
	@$(setup) kubelet
	@mkdir -p $(reports)
	@go build -o $(reports)/kerneltest ./integration/kerneltest
	@echo '== a real kubelet'
	@THINSNAP_KUBELET=1 $(gotestsum) --jsonfile $(reports)/kubelet.json --raw-command -- \
		$(reports)/kerneltest -cpus 2 -timeout 2h -run 'TestKubelet' ./integration/kubernetes
	@! grep --quiet '"Action":"skip"' $(reports)/kubelet.json || { echo 'a test with the kubelet was skipped'; exit 1; }

full-disks: test-guest ## Fill and free the disk below a pool CYCLES times, of each kind and on each file system: a part of test-all
	@mkdir -p $(reports)
	@go build -o $(reports)/kerneltest ./integration/kerneltest
	@echo '== full disks, $(CYCLES) cycles of each kind'
	@THINSNAP_CYCLES=$(CYCLES) $(gotestsum) --jsonfile $(reports)/full-disks.json --raw-command -- \
		$(reports)/kerneltest -timeout 2h -run 'TestFullDisk$$' ./internal/daemon

# Tests that are cells of docs/support.md (harnesstest.Cell). Other kernels than the machine's own run only the newest
# containerd. The kubelet needs two processors.
cells := TestContainerd$$|TestDocker$$|TestMachine$$|TestCRI$$
other-cells := TestContainerd$$/containerd-2.4$$
run-cells = $(gotestsum) --jsonfile $(reports)/cells/$(1).json --raw-command -- env THINSNAP_KERNEL=$(2) \
	$(reports)/kerneltest -timeout 3h $(3)

# Each part runs even if another fails. Only tests that ran are recorded.
matrix: export THINSNAP_THOROUGH := 1
matrix: export THINSNAP_KUBELET := 1
matrix: test-guest ## Run old and new clients on three kernels, and record the results in docs/support.md: at most 2 hours
	@$(MAKE) --no-print-directory test-images
	@$(setup) kubelet
	@$(foreach kernel,$(KERNELS),THINSNAP_KERNEL=$(kernel) $(setup) kernel;)
	@rm -rf $(reports)/cells && mkdir -p $(reports)/cells
	@go build -o $(reports)/ ./integration/kerneltest ./integration/matrix
	@failed=; \
	echo '== clients on the kernel of this release'; \
	$(call run-cells,own,,-run '$(cells)' ./integration ./integration/kubernetes ./integration/machine) || failed=1; \
	$(call run-cells,kubelet,,-cpus 2 -run 'TestKubelet$$' ./integration/kubernetes) || failed=1; \
	$(foreach kernel,$(KERNELS),echo '== the newest containerd on the kernel of $(kernel)'; \
	$(call run-cells,$(kernel),$(kernel),-run '$(other-cells)' ./integration) || failed=1;) \
	$(reports)/matrix docs $(reports)/cells/*.json || failed=1; \
	[ -z "$$failed" ]

# FLAGS go to integration/bench: FLAGS='-cases first,child -snapshotters thinsnap,overlayfs' runs only that part. NATIVE=1
# uses a user-mode kernel, on which programs are not emulated. A run also shows the figures of the other kind of run.
NATIVE ?=
native := $(if $(NATIVE),-native)
bench: build ## Compare thinsnap with containerd's own snapshotters, in a VM if this machine has no device-mapper
	@$(setup) packages kernel debian vmrun containerd nerdctl $(if $(NATIVE),uml)
	@integration/image/build.sh >/dev/null
	@integration/image/build.sh large >/dev/null
	@mkdir -p $(reports) && rm -rf $(disk) $(bench)$(native).json $(bench)$(native)-profiles
	@go test -c -o $(bench).test ./integration/bench
	@echo "== benchmarks, in the $(if $(NATIVE),guest: NATIVE=$(NATIVE),$$($(cache)/bin/vmrun -where))"
	@trap 'rm -f $(disk)' EXIT; cd integration/bench; \
		THINSNAP_KERNEL_TESTS=1 $(cache)/bin/vmrun $(if $(NATIVE),-direct never -accel uml) \
		-timeout 90m -memory 14336 -disk $(disk):60GiB -share $(CURDIR)/$(reports) \
		$(bench).test -test.run '^$$' -test.bench . -test.benchtime 1x -test.timeout 85m \
		-json $(bench)$(native).json -beside $(bench)$(if $(NATIVE),,-native).json -profiles $(bench)$(native)-profiles $(FLAGS)
	@for profile in $(bench)$(native)-profiles/*; do \
		[ -e "$$profile" ] || continue; \
		echo "== $${profile##*/}"; \
		case $$profile in \
		*.pprof) \
			go tool pprof -top -nodecount 10 "$$profile" 2>/dev/null; \
			go tool pprof -top -cum -nodecount 10 -show 'thinsnap/thinsnap/(snapshotter|devmapper|metadata)' "$$profile" 2>/dev/null | tail -11 ;; \
		*.perf.txt) grep -v '^#' "$$profile" | grep . | sed -n 's/[ -]*$$//; 1,20p' ;; \
		esac; \
	done
ifeq ($(FLAGS)$(NATIVE),)
	@echo '== with up to 100,000 snapshots, without a kernel'
	@THINSNAP_BENCH_JSON=$(bench)-scale.json go test -run '^$$' -bench Scale -benchtime 1x ./integration/bench/scale
endif

# FLAGS go to integration/powercut/torture: '-seed N' repeats the run with that seed, '-filesystem xfs' selects the other
# file system, and '-cpus 1' leaves more of this machine to others.
torture: build ## Cut a VM's power CUTS times, and replay its writes up to POINTS points: over an hour for 200 and 200
	@$(setup) packages kernel debian containerd nerdctl
	@mkdir -p $(reports)
	@go build -o $(reports)/torture ./integration/powercut/torture
	@$(reports)/torture -cuts $(CUTS) -points $(POINTS) $(FLAGS)

demo: ## Show thinsnap at work with containerd and a real image
	@integration/demo.sh

clean: ## Remove all build results
	rm -rf bin $(reports)

distclean: clean ## Remove the cache of tools and kernels, too
	chmod -R u+w '$(cache)' 2>/dev/null || true
	rm -rf '$(cache)'

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
