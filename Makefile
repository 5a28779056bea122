# Everything here can be run from a fresh clone: "make demo" and "make test" install and build what they need.

GO               ?= go
GOFLAGS_BUILD    ?= -trimpath
LDFLAGS          ?= -s -w
ifeq ($(origin CC),default)
CC               := gcc
endif
CFLAGS           ?= -O2 -Wall -Wextra -Werror
BIN              ?= $(CURDIR)/bin
TOOLS            ?= $(BIN)/tools
TESTPROGS        ?= $(BIN)/testprogs
RUN              ?=
COUNT            ?= 1
FUZZTIME         ?= 3000x
REQUESTS         ?= 1000
TIMEOUT          ?= 40m
DURATION         ?= 10m
KILLS            ?= 10000
PKGS             ?= ./...

# Packages of the integration tests: they need root and the tools, and run apart from the unit tests.
INTEGRATION_PKGS ?= ./integration/...

COMMANDS   := $(notdir $(patsubst %/main.go,%,$(wildcard cmd/*/main.go)))
TESTPROG_C := $(wildcard integration/testprogs/*.c)
TESTPROG_B := $(patsubst integration/testprogs/%.c,$(TESTPROGS)/%,$(TESTPROG_C))

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this text.
	@awk 'BEGIN {FS = ":.*## "} /^[a-zA-Z0-9_-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  make test-integration RUN=TestZombies   one integration test, with its log'
	@echo '  make test-unit PKGS=./runtime/procfs    one package'

.PHONY: all
all: build tools testprogs ## Build everything that is built.

# A shim speaks ttrpc. Without this tag, with which containerd builds its own, gRPC and an HTTP server come with the messages.
SHIM_TAGS := no_grpc

.PHONY: build
build: $(BIN)/reaper-init ## Build the commands under cmd/ into bin/.
	@mkdir -p $(BIN)
	@set -e; for c in $(COMMANDS); do \
		echo "build $$c"; \
		tags=; case $$c in containerd-shim-*) tags=$(SHIM_TAGS);; esac; \
		CGO_ENABLED=0 $(GO) build $(GOFLAGS_BUILD) -tags "$$tags" -ldflags '$(LDFLAGS)' -o $(BIN)/$$c ./cmd/$$c; \
	done

# Tracing is linked in by containerd's own tag. It makes the shim larger (docs/tracing.md), so whoever wants it installs this directory.
.PHONY: build-tracing
build-tracing: build ## The commands once more in bin/tracing, with a shim that can send OpenTelemetry traces: docs/tracing.md.
	@mkdir -p $(BIN)/tracing
	@cd $(BIN) && ln -f $(filter-out containerd-shim-reaper-v2,$(COMMANDS)) reaper-init tracing/
	@echo "build tracing/containerd-shim-reaper-v2"
	@CGO_ENABLED=0 $(GO) build $(GOFLAGS_BUILD) -tags shim_tracing -ldflags '$(LDFLAGS)' -o $(BIN)/tracing/ ./cmd/containerd-shim-reaper-v2

# reaper-init is C without a C library: its memory counts against the limit of every container that it is in.
CC_ARM64       ?= aarch64-linux-gnu-gcc
INIT_SOURCES   := $(wildcard cmd/reaper-init/src/*.c)
INIT_DEPS      := $(INIT_SOURCES) $(wildcard cmd/reaper-init/src/*.h)
INIT_WARNINGS  := -Wall -Wextra -Werror -Wconversion -Wshadow -Wstrict-prototypes
INIT_CFLAGS    := -std=gnu11 -Os -ffreestanding -fno-builtin -fno-stack-protector -fno-asynchronous-unwind-tables \
	-fomit-frame-pointer -fno-tree-loop-distribute-patterns -fno-pie -no-pie
INIT_LDFLAGS   := -nostdlib -static -s -Wl,-z,noexecstack -Wl,-z,noseparate-code -Wl,-z,norelro -Wl,--build-id=none

$(BIN)/reaper-init: $(INIT_DEPS)
	@mkdir -p $(BIN)
	@echo "build reaper-init"
	@$(CC) $(INIT_CFLAGS) $(INIT_DEFINES) $(INIT_WARNINGS) $(INIT_LDFLAGS) -o $@ $(INIT_SOURCES)

$(BIN)/reaper-init-arm64: $(INIT_DEPS)
	@mkdir -p $(BIN)
	@echo "build reaper-init-arm64"
	@$(CC_ARM64) $(INIT_CFLAGS) $(INIT_WARNINGS) $(INIT_LDFLAGS) -o $@ $(INIT_SOURCES)

.PHONY: reaper-init-arm64
reaper-init-arm64: $(BIN)/reaper-init-arm64 ## Cross-compile reaper-init for arm64 (needs gcc-aarch64-linux-gnu and linux-libc-dev-arm64-cross).
	@:

# ---- what the machine has to have ----------------------------------------------------------------------------------

# gcc and libc6-dev: cgo for the race detector, runc and the test programs; libseccomp-dev and pkg-config: runc;
# busybox-static: the file system of the test containers; procps (ps): nerdctl top; util-linux (nsenter): the harness;
# libc6-dev brings the kernel's headers, for reaper-init; bash, coreutils and mount are in its tests too.
# python3, perl, bash, dash: PID 1 in TestRealPrograms (node and java too, where the machine has them); systemd: in TestSystemd;
# strace, gdb: other tracers of PID 1; crun: the other OCI runtime; rpm: what test-packages installs the package with.
APT_PACKAGES ?= gcc libc6-dev libseccomp-dev pkg-config busybox-static procps util-linux python3 perl bash dash systemd strace gdb crun rpm

.PHONY: deps
deps: ## Install missing Debian packages (as root).
	@missing=; for p in $(APT_PACKAGES); do \
		dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; \
	done; \
	[ -z "$$missing" ] && exit 0; \
	if ! command -v apt-get >/dev/null; then \
		echo "make deps: this machine has no apt-get. Install with its own package manager:$$missing" >&2; exit 1; \
	fi; \
	if [ "$$(id -u)" != 0 ]; then \
		echo "make deps: missing:$$missing. Run as root: apt-get install$$missing" >&2; exit 1; \
	fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	echo "install$$missing"; \
	apt-get install -y -q --no-install-recommends $$missing >/dev/null 2>&1 || \
		{ apt-get update -q && apt-get install -y -q --no-install-recommends $$missing; }

# TestStatusPage looks at the exporter's page in it, make screens takes pictures. The demo does without.
BROWSER_PACKAGES ?= chromium fonts-dejavu-core

.PHONY: deps-browser
deps-browser: ## Install Chromium, for TestStatusPage and screens (as root).
	@$(MAKE) --no-print-directory deps APT_PACKAGES='$(BROWSER_PACKAGES)'

# For the virtual machines of test-arm64 and test-vm. qemu-system-*: the machines; gcc-aarch64-linux-gnu and its libc: the test
# programs. None of it is needed by "make test".
# criu: the one that knows Debian's kernel; the machine's own may be too new for it.
VM_PACKAGES ?= qemu-system-arm qemu-system-x86 gcc-aarch64-linux-gnu libc6-dev-arm64-cross debian-archive-keyring criu

.PHONY: deps-vm
deps-vm: ## Install what test-arm64 and test-vm need (as root).
	@$(MAKE) --no-print-directory deps APT_PACKAGES='$(APT_PACKAGES) $(VM_PACKAGES)'

# Each tool is built inside its own module, with the dependencies that its authors chose; integration/tools only pins
# the versions.
# $(1) file in bin/tools, $(2) module, $(3) package in it, $(4) environment, $(5) flags
define tool
$(TOOLS)/$(1): integration/tools/go.mod
	@mkdir -p $(TOOLS)
	@echo "build tools/$(1)"
	@cd integration/tools && $(GO) mod download $(2) && dir=$$$$($(GO) list -m -f '{{.Dir}}' $(2)) && \
		cd $$$$dir && $(4) $(GO) build -trimpath -mod=readonly -buildvcs=false $(5) -o $$@ $(3)
TOOL_FILES += $(TOOLS)/$(1)
endef

NO_SNAPSHOTTERS := -tags no_btrfs,no_devmapper,no_zfs
$(eval $(call tool,containerd,github.com/containerd/containerd/v2,./cmd/containerd,CGO_ENABLED=0,$(NO_SNAPSHOTTERS)))
$(eval $(call tool,containerd-shim-runc-v2,github.com/containerd/containerd/v2,./cmd/containerd-shim-runc-v2,CGO_ENABLED=0,-tags $(SHIM_TAGS) -ldflags '$(LDFLAGS)'))
$(eval $(call tool,ctr,github.com/containerd/containerd/v2,./cmd/ctr,CGO_ENABLED=0,$(NO_SNAPSHOTTERS)))
$(eval $(call tool,runc,github.com/opencontainers/runc,.,CGO_ENABLED=1,-tags seccomp))
$(eval $(call tool,nerdctl,github.com/containerd/nerdctl/v2,./cmd/nerdctl,CGO_ENABLED=0,))
$(eval $(call tool,crictl,sigs.k8s.io/cri-tools,./cmd/crictl,CGO_ENABLED=0,))
$(eval $(call tool,gotestsum,gotest.tools/gotestsum,.,CGO_ENABLED=0,))

# Tests of others, as programs.
# $(1) file in bin/tools, $(2) module, $(3) package in it, $(4) flags; $(version) in them is the module's
define testbinary
$(TOOLS)/$(1): integration/tools/go.mod
	@mkdir -p $(TOOLS)
	@echo "build tools/$(1)"
	@cd integration/tools && $(GO) mod download $(2) && dir=$$$$($(GO) list -m -f '{{.Dir}}' $(2)) && \
		version=$$$$($(GO) list -m -f '{{.Version}}' $(2)) && cd $$$$dir && \
		CGO_ENABLED=0 $(GO) test -c -trimpath -mod=readonly -buildvcs=false $(4) -o $$@ $(3)
endef

# runc with failures of some tests' choice.
$(eval $(call tool,runc-fp,github.com/containerd/containerd/v2,./integration/failpoint/cmd/runc-fp,CGO_ENABLED=0,))
$(eval $(call testbinary,critest,sigs.k8s.io/cri-tools,./cmd/critest,-ldflags "-X sigs.k8s.io/cri-tools/pkg/version.Version=$$$$version"))
$(eval $(call testbinary,containerd-client.test,github.com/containerd/containerd/v2,./integration/client,$(NO_SNAPSHOTTERS)))

# For make bench only. One file is exchanged, since it asks for more open files than there may be.
$(TOOLS)/containerd-stress: integration/tools/go.mod integration/tools/stress/rlimit.go
	@mkdir -p $(TOOLS)
	@echo "build tools/containerd-stress"
	@set -e; copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; cd integration/tools; module=github.com/containerd/containerd/v2; \
		$(GO) mod download $$module; cp -r --no-preserve=mode "$$($(GO) list -m -f '{{.Dir}}' $$module)/." $$copy; \
		cp stress/rlimit.go $$copy/cmd/containerd-stress/rlimit_unix.go; \
		cd $$copy && CGO_ENABLED=0 $(GO) build -trimpath -mod=readonly -buildvcs=false -o $@ ./cmd/containerd-stress

# Daemons of the tests with older versions of containerd, each with its own runc.v2 shim: that of containerd 2.3 and later is not
# started by older ones. Each is pinned in a module of its own.
# $(1) version, $(2) module
define daemon
$(TOOLS)/containerd-$(1): integration/tools/containerd-$(1)/go.mod
	@mkdir -p $(TOOLS)
	@echo "build tools/containerd-$(1)"
	@cd integration/tools/containerd-$(1) && $(GO) mod download $(2) && dir=$$$$($(GO) list -m -f '{{.Dir}}' $(2)) && \
		version=$$$$($(GO) list -m -f '{{.Version}}' $(2)) && cd $$$$dir && export CGO_ENABLED=0 && \
		$(GO) build -trimpath -mod=readonly -buildvcs=false -o $(TOOLS)/shims/$$(notdir $$@)/ ./cmd/containerd-shim-runc-v2 && \
		$(GO) build -trimpath -mod=readonly -buildvcs=false $(NO_SNAPSHOTTERS) -ldflags "-X $(2)/version.Version=$$$$version" \
		-o $$@ ./cmd/containerd
DAEMON_FILES += $(TOOLS)/containerd-$(1)
endef

$(eval $(call daemon,1.7,github.com/containerd/containerd))
$(eval $(call daemon,2.0,github.com/containerd/containerd/v2))
$(eval $(call daemon,2.2,github.com/containerd/containerd/v2))

# Debian's package, taken apart and not installed: a containerd that this machine may have is left alone.
$(TOOLS)/containerd-debian:
	@mkdir -p $(TOOLS)
	@echo "unpack tools/containerd-debian"
	@set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; cd "$$dir"; chmod 755 .; \
		apt-get download -q containerd >/dev/null 2>&1 || { apt-get update -q >/dev/null && apt-get download -q containerd; }; \
		dpkg-deb -x containerd_*.deb . && install -D -m 755 -t $(TOOLS)/shims/$(notdir $@) usr/bin/containerd-shim-runc-v2 && \
		install -m 755 usr/bin/containerd $@
DAEMON_FILES += $(TOOLS)/containerd-debian

# Debian's promtool, out of its package, which is not installed: that would start a Prometheus.
$(TOOLS)/promtool:
	@mkdir -p $(TOOLS)
	@echo "unpack tools/promtool"
	@set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; cd "$$dir"; chmod 755 .; \
		apt-get download -q prometheus >/dev/null 2>&1 || { apt-get update -q >/dev/null && apt-get download -q prometheus; }; \
		dpkg-deb -x prometheus_*.deb . && install -m 755 usr/bin/promtool $@

.PHONY: daemons
daemons: $(DAEMON_FILES) ## Get the older versions of containerd that test-matrix runs with.
	@:

.PHONY: tools
tools: $(TOOL_FILES) ## Build containerd, runc, ctr, nerdctl and crictl into bin/tools (pinned in integration/tools).
	@:

$(TOOLS)/golangci-lint: integration/tools/lint/go.mod
	@mkdir -p $(TOOLS)
	@echo "build tools/golangci-lint"
	@cd integration/tools/lint && CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

$(TESTPROGS)/%: integration/testprogs/%.c
	@mkdir -p $(TESTPROGS)
	$(CC) $(CFLAGS) -static -pthread -o $@ $<

.PHONY: testprogs
testprogs: $(TESTPROG_B) ## Compile the static programs that run inside test containers.
	@:

# ---- checks --------------------------------------------------------------------------------------------------------

# What a machine lacks skips a test; here it fails it, so that green means tested.
.PHONY: test
test: export REAPER_TEST_REQUIRE = 1
test: ## All that CI needs, from a fresh machine: install, build, lint, unit, fuzz and integration tests (as root).
	@$(MAKE) --no-print-directory deps deps-browser
	@$(MAKE) --no-print-directory tools testprogs build
	@$(MAKE) --no-print-directory vet
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory test-unit
	@$(MAKE) --no-print-directory fuzz
	@$(MAKE) --no-print-directory test-integration
	@$(MAKE) --no-print-directory test-crun
	@$(MAKE) --no-print-directory test-oldest
	@$(MAKE) --no-print-directory test-manifests
	@$(MAKE) --no-print-directory test-packages SHORT=1

.PHONY: vet
vet: ## go vet, for amd64 and arm64.
	$(GO) vet ./...
	GOARCH=arm64 $(GO) vet ./...
	$(GO) vet -tags shim_tracing ./cmd/containerd-shim-reaper-v2 ./shim

.PHONY: lint
lint: $(TOOLS)/golangci-lint ## golangci-lint, pinned in integration/tools/lint.
	$(TOOLS)/golangci-lint run --allow-parallel-runners ./...
	GOARCH=arm64 $(TOOLS)/golangci-lint run --allow-parallel-runners ./runtime/... # the only packages with code of its own

# Real kernels, processes and daemons on a machine that others share: a test that fails is run once more by itself, five tests at
# most, and named at the end. What fails twice, a data race, and what is left behind fail the run.
GOTESTSUM = $(TOOLS)/gotestsum --format $(if $(RUN),standard-verbose,pkgname) --rerun-fails=1 --rerun-fails-max-failures=5 \
	--rerun-fails-run-root-test --rerun-fails-abort-on-data-race

# What must not fail a single time: one in thousands is what they look for.
EVIDENCE = ^Test(Crash|RunningCrash|SwapWindow)$$
WHOLE = $(if $(RUN)$(filter-out ./...,$(PKGS)),,yes)

.PHONY: test-unit
test-unit: $(TOOLS)/gotestsum $(TOOLS)/promtool ## Unit tests with the race detector (PKGS=, RUN=).
	GORACE=atexit_sleep_ms=0 CGO_ENABLED=1 $(GOTESTSUM) --packages="$$($(GO) list $(PKGS) | grep -v '/integration' | tr '\n' ' ')" -- \
		-race -count=$(COUNT) -timeout $(TIMEOUT) $(if $(RUN),-run '$(RUN)') $(if $(WHOLE),-skip '$(EVIDENCE)')
	$(if $(WHOLE),GORACE=atexit_sleep_ms=0 CGO_ENABLED=1 $(GO) test -race -count=$(COUNT) -timeout $(TIMEOUT) \
		-run '$(EVIDENCE)' ./runtime/tracer)
	$(if $(WHOLE),$(GO) test -tags shim_tracing -run 'Tracing|Span' ./shim)

.PHONY: fuzz
fuzz: ## Every fuzz target, FUZZTIME inputs (3000x) besides its corpus.
	@set -e; grep -rl --include='*_test.go' '^func Fuzz' . | while read -r file; do \
		for f in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' $$file); do \
			echo "fuzz $$(dirname $$file) $$f"; \
			$(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$(dirname $$file); \
		done; \
	done

.PHONY: test-integration
test-integration: tools testprogs build-tracing $(TOOLS)/containerd-1.7 ## Tests against a private containerd, as root (RUN=, COUNT=, TIMEOUT=).
	$(GOTESTSUM) --packages="$(INTEGRATION_PKGS)" -- -count=$(COUNT) -timeout $(TIMEOUT) $(if $(RUN),-run '$(RUN)')

# What every version of containerd has to pass: that containers live and end as under runc.v2, that zombies vanish, and that
# the daemon and our programs can be replaced. TestDaemonUpgrade goes from this version to the newest.
CORE_TESTS ?= ^Test(Ctr|Crictl|CRIZombies|DaemonRestart|DaemonUpgrade|ShimUpgrade|ShimKilled|Grouping|HostPIDOrphans|Parity.*|OrphanEvents|Zombies|Modes)$$
OLDEST     := containerd-debian

CRUN_TESTS ?= ^Test(OCIRuntime|Zombies|Modes|ParityLifecycle|ParityExits|ParityManyExecs|OrphanEvents|HostPIDOrphans|InitMode|InitModeExits)$$

.PHONY: test-crun
test-crun: tools testprogs build ## The core integration tests with crun in place of runc (as root; RUN=).
	REAPER_TEST_OCI_RUNTIME=crun $(GOTESTSUM) --packages=./integration -- -count=1 -timeout $(TIMEOUT) -run '$(or $(RUN),$(CRUN_TESTS))'

.PHONY: test-oldest
test-oldest: tools testprogs build $(TOOLS)/$(OLDEST) ## The core integration tests with the oldest containerd, Debian's 1.6 (as root).
	REAPER_TEST_CONTAINERD=$(OLDEST) REAPER_TEST_UPGRADE_FROM=$(OLDEST) $(GOTESTSUM) --packages=./integration -- -count=1 \
		-timeout $(TIMEOUT) -run '$(CORE_TESTS)'

.PHONY: test-matrix
test-matrix: tools daemons testprogs build ## The core integration tests with each version of containerd: docs/containerd.md (as root).
	$(GO) run ./integration/matrix -run '$(CORE_TESTS)' $(notdir $(DAEMON_FILES)) containerd

# containernetworking-plugins, iptables: the pods' network; util-linux: ipcmk.
CRITEST_PACKAGES         := containernetworking-plugins iptables util-linux
# criu, lsof, xfsprogs: tests that skip or fail without.
CONTAINERD_TEST_PACKAGES := criu lsof xfsprogs

.PHONY: critest
critest: ## CRI conformance with our runtime beside runc.v2: docs/cri-conformance.md (FOCUS=, MODE=assist; as root).
	@$(MAKE) --no-print-directory deps APT_PACKAGES='$(APT_PACKAGES) $(CRITEST_PACKAGES)'
	@$(MAKE) --no-print-directory tools $(TOOLS)/critest testprogs build
	$(GO) run ./integration/critest $(if $(FOCUS),-focus '$(FOCUS)') $(if $(MODE),-mode '$(MODE)')

.PHONY: test-containerd
test-containerd: ## containerd's own client tests with our runtime beside runc.v2: docs/containerd-tests.md (FOCUS=; as root).
	@$(MAKE) --no-print-directory deps APT_PACKAGES='$(APT_PACKAGES) $(CONTAINERD_TEST_PACKAGES)'
	@$(MAKE) --no-print-directory tools $(TOOLS)/containerd-client.test testprogs build
	$(GO) run ./integration/containerdtests $(if $(FOCUS),-focus '$(FOCUS)')

# Kubernetes is pinned in a module of its own, in which releases stand for the staging directories that its own go.mod points at.
KUBERNETES_MODULE   := integration/tools/kubernetes
KUBERNETES_PROGRAMS := kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl

$(addprefix $(TOOLS)/,$(KUBERNETES_PROGRAMS)): $(TOOLS)/%: $(KUBERNETES_MODULE)/go.mod
	@mkdir -p $(TOOLS)
	@echo "build tools/$*"
	@cd $(KUBERNETES_MODULE) && version=$$($(GO) list -m -f '{{.Version}}' k8s.io/kubernetes) && \
		CGO_ENABLED=0 $(GO) build -trimpath -mod=readonly -buildvcs=false \
		-ldflags "$(LDFLAGS) -X k8s.io/component-base/version.gitVersion=$$version" -o $@ k8s.io/kubernetes/cmd/$*

$(TOOLS)/etcd: integration/tools/etcd/go.mod
	@mkdir -p $(TOOLS)
	@echo "build tools/etcd"
	@cd integration/tools/etcd && CGO_ENABLED=0 $(GO) build -trimpath -mod=readonly -buildvcs=false -ldflags '$(LDFLAGS)' -o $@ \
		go.etcd.io/etcd/server/v3

.PHONY: e2e-kubernetes
e2e-kubernetes: ## A Kubernetes cluster of one node, with leaky pods under runc.v2 and under ours: docs/kubernetes.md (as root).
	@$(MAKE) --no-print-directory deps
	@$(MAKE) --no-print-directory tools $(addprefix $(TOOLS)/,etcd $(KUBERNETES_PROGRAMS)) testprogs build
	$(GO) run ./integration/kubernetes

# The same version of Helm as in integration/manifests.
$(TOOLS)/helm: integration/tools/helm/go.mod
	@mkdir -p $(TOOLS)
	@echo "build tools/helm"
	@cd integration/tools/helm && version=$$($(GO) list -m -f '{{.Version}}' helm.sh/helm/v3) && \
		CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags "$(LDFLAGS) -X helm.sh/helm/v3/internal/version.version=$$version" \
		-o $@ helm.sh/helm/v3/cmd/helm

# Debian's buildah, with the libraries that a machine may lack: unpacked and not installed.
$(TOOLS)/buildah/usr/bin/buildah:
	@mkdir -p $(TOOLS)
	@echo "unpack tools/buildah"
	@set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; cd "$$dir"; chmod 755 .; \
		packages='buildah libgpgme11 libassuan0 libdevmapper1.02.1'; \
		apt-get download -q $$packages >/dev/null 2>&1 || { apt-get update -q >/dev/null && apt-get download -q $$packages; }; \
		for p in *.deb; do dpkg-deb -x $$p root; done; rm -rf $(TOOLS)/buildah; mv root $(TOOLS)/buildah; touch $@

# containernetworking-plugins: pods reach the API server.
.PHONY: e2e-install
e2e-install: ## The DaemonSet on a cluster whose node has systemd, by kustomize and Helm: docs/installing.md (as root).
	@$(MAKE) --no-print-directory deps APT_PACKAGES='$(APT_PACKAGES) containernetworking-plugins'
	@$(MAKE) --no-print-directory tools $(addprefix $(TOOLS)/,etcd $(KUBERNETES_PROGRAMS) helm buildah/usr/bin/buildah) testprogs build
	$(GO) run ./integration/kubernetes install

VM     := $(GO) run ./internal/vm $(if $(RECORD),-record docs/kernels.md) $(if $(KERNEL),-kernel '$(KERNEL)') \
	$(if $(VM_KILLS),-kills $(VM_KILLS)) $(if $(VM_REAPS),-reaps $(VM_REAPS))
VM_RUN ?= ^(TestZombies|TestZombiesOfOwnSession|TestModes|TestSelfCheck|TestParity.*|TestOwnChildren|TestGoodInitIsLeftAlone|TestShimKilled|TestTracerKilled|TestRefusals|TestCheckpoint.*)$$

# Test32Bit: the kernel at hand may run no 32-bit programs, Debian's does.
VM_UNIT ?= ^(Test32Bit|TestParkedCalls|TestRestarts|TestRefusals|TestDeclines|TestZombieTraced|TestSeccomp.*|TestRunning.*|TestTransparencyRunning|TestFrozen.*|TestSwapWindow|TestCrash)$$

.PHONY: test-arm64
test-arm64: deps-vm ## Unit tests of runtime/... on Debian's arm64 kernel under QEMU (RUN=, PKGS=, KERNEL=, RECORD=1, VM_KILLS=, VM_REAPS=).
	$(VM) -arch arm64 $(if $(RUN),-run '$(RUN)') $(if $(filter-out ./...,$(PKGS)),-pkgs '$(PKGS)') unit

.PHONY: test-vm
test-vm: deps-vm tools testprogs build ## Container integration tests, and those of the tracer, on Debian's amd64 kernel with cgroup v2 under QEMU (RUN=, KERNEL=, RECORD=1).
	$(VM) -arch amd64 -run '$(or $(RUN),$(VM_RUN))' integration
	$(if $(RUN),,$(VM) -arch amd64 -run '$(VM_UNIT)' -pkgs ./runtime/tracer unit)

.PHONY: soak-lineage
soak-lineage: tools testprogs build ## Random process trees for DURATION (10m): was any status lost? (SEED=, SOURCE=; as root).
	REAPER_SOAK=$(DURATION) REAPER_SOAK_SEED=$(SEED) REAPER_SOAK_SOURCE=$(SOURCE) $(GO) test -count=1 -timeout 0 -v -run '^TestLineageSoak$$' ./integration

.PHONY: test-storm
test-storm: tools testprogs build ## 100,000 zombies at once, and a leak at full rate for DURATION (10m), below one PID 1 (as root).
	REAPER_STORM=$(DURATION) $(GO) test -count=1 -timeout 0 -v -run '^(TestStorm|TestBusyLeak|TestStormLong)$$' ./integration

.PHONY: test-crash
test-crash: ## The tracer killed KILLS (10000) times in each state of PID 1: docs/crash-safety.md and its data (as root).
	$(GO) test -count=1 -timeout 0 -v -run '^(TestSwapWindow.*|TestCrash.*|TestClientDies|TestExitUnderAttaches)$$' ./runtime/tracer -args \
		-kills=$(KILLS) -crash-report=$(CURDIR)/docs/data/crash-safety.json -crash-page=$(CURDIR)/docs/crash-safety.md

.PHONY: test-transparency
test-transparency: ## Does PID 1 notice anything? REQUESTS (1000) zombies reaped from each system call (as root; RUN=).
	REAPER_TRANSPARENCY_REQUESTS=$(REQUESTS) $(GO) test -count=1 -timeout 0 -v -run '$(or $(RUN),^TestTransparency$$)' ./runtime/tracer

.PHONY: proto
proto: ## Regenerate the protobuf and ttrpc code under shim/api.
	$(GO) generate ./shim/api/...

.PHONY: docs-reaperctl
docs-reaperctl: tools testprogs build ## Run reaperctl on leaky containers: the outputs in docs/reaperctl.md (as root).
	$(GO) run ./integration/ctldocs

.PHONY: docs-exporter
docs-exporter: ## The table of metrics in docs/exporter.md.
	$(GO) test -count=1 -run '^TestDocs$$' ./internal/exporter -write-docs $(CURDIR)/docs/exporter.md

.PHONY: bench-exporter
bench-exporter: tools testprogs build ## What a scrape costs with as many containers as start in 2 minutes: docs/exporter.md (as root).
	$(GO) run ./integration/exporterbench

.PHONY: screens
screens: ## The pictures in docs/screens: reaperctl, the demo and the status page as they run (as root).
	@$(MAKE) --no-print-directory deps deps-browser
	@$(MAKE) --no-print-directory tools testprogs build
	$(GO) run ./integration/screens

.PHONY: bench-tracing
bench-tracing: tools testprogs build-tracing ## What OpenTelemetry costs a shim, off and on: docs/tracing.md (as root).
	$(GO) run ./integration/tracingbench

.PHONY: demo
demo: ## The same leaky container under runc.v2 and under reaper.v2, side by side (as root).
	@$(MAKE) --no-print-directory deps
	@$(MAKE) --no-print-directory tools testprogs build
	@$(GO) run ./integration/demo

# tini: who reaps when PID 1 is an init.
.PHONY: bench
bench: ## What our shim costs beside runc.v2's: docs/benchmarks.md, its data and plots (BENCH='-only start -rounds 2', see -help; as root).
	@$(MAKE) --no-print-directory deps APT_PACKAGES='$(APT_PACKAGES) $(CRITEST_PACKAGES) tini'
	@$(MAKE) --no-print-directory tools $(TOOLS)/critest $(TOOLS)/containerd-stress testprogs build
	$(GO) run ./integration/bench $(BENCH)

.PHONY: bench-render
bench-render: ## The tables and plots of docs/benchmarks.md once more, from docs/data/benchmarks.json.
	$(GO) run ./integration/bench -render

.PHONY: bench-go
bench-go: ## Go benchmarks: microseconds per zombie and the longest stop of PID 1 (as root; PKGS=).
	$(GO) test -run '^$$' -bench . $(if $(filter-out ./...,$(PKGS)),$(PKGS),./runtime/...)

.PHONY: bench-forklog
bench-forklog: ## What the fork logs cost: docs/data/fork-log.json and the tables of docs/fork-log.md (as root).
	CGO_ENABLED=0 $(GO) run ./internal/benchforklog

# gcc: the server and PID 1; wrk: its clients; tini: the init that it is measured against.
BENCH_PACKAGES := gcc libc6-dev wrk tini

.PHONY: deps-bench
deps-bench: ## Install what make bench-tracer needs besides (as root).
	@$(MAKE) --no-print-directory deps APT_PACKAGES='$(BENCH_PACKAGES)'

.PHONY: bench-tracer
bench-tracer: deps-bench build ## What reaping costs: docs/data/tracer.json and the tables of docs/tracer-benchmarks.md (as root).
	CGO_ENABLED=0 $(GO) run ./internal/benchtracer -worker $(BIN)/reaper-tracer

.PHONY: init-cases
init-cases: ## The cases of reaper-init, ours and those of tini and dumb-init: docs/init-cases.md (as root).
	$(GO) test -count=1 -run '^TestCases$$' ./cmd/reaper-init/initest -write-cases $(CURDIR)/docs/init-cases.md

.PHONY: bench-init
bench-init: build ## reaper-init beside tini, dumb-init and catatonit: docs/data/init.json and the table of docs/init.md (as root).
	@$(MAKE) --no-print-directory deps APT_PACKAGES='gcc libc6-dev tini dumb-init catatonit'
	CGO_ENABLED=0 $(GO) run ./internal/benchinit -init $(BIN)/reaper-init

# ---- packages ------------------------------------------------------------------------------------------------------

# Nothing of the machine and of the time goes into what is built, so that anybody can build it again byte for byte.
# Without a tag: a number that grows.
ifndef VERSION
VERSION   := $(patsubst v%,%,$(shell git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null))
COMMITS   := $(shell git rev-list --count HEAD 2>/dev/null)
VERSION   := $(or $(VERSION),0.0.0-$(if $(COMMITS),$(COMMITS)-$(shell git describe --always --dirty 2>/dev/null),unknown))
endif
ifndef SOURCE_DATE_EPOCH
SOURCE_DATE_EPOCH := $(or $(shell git log -1 --format=%ct 2>/dev/null),0)
endif
DIST      ?= $(CURDIR)/dist
RELEASE   := containerd-shim-reaper-$(VERSION)-linux-amd64
build-release release deb rpm: export SOURCE_DATE_EPOCH := $(SOURCE_DATE_EPOCH)
SHIPPED   := containerd-shim-reaper-v2 reaper-tracer reaper-install reaperctl reaper-exporter

# $(1) file in bin/tools, $(2) package
define packager
$(TOOLS)/$(1): integration/tools/package/go.mod
	@mkdir -p $(TOOLS)
	@echo "build tools/$(1)"
	@cd integration/tools/package && CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -o $$@ $(2)
endef
$(eval $(call packager,nfpm,github.com/goreleaser/nfpm/v2/cmd/nfpm))
$(eval $(call packager,cyclonedx-gomod,github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod))

.PHONY: build-release
build-release:
	@rm -rf $(DIST)/build
	@GOARCH=amd64 $(MAKE) --no-print-directory build BIN=$(DIST)/build GOFLAGS_BUILD='-trimpath -buildvcs=false' \
		LDFLAGS='-s -w -buildid= -X main.version=$(VERSION) -X main.buildVersion=$(VERSION)' INIT_DEFINES='-DVERSION=\"$(VERSION)\"'
	@cp -r contrib README.md CHANGELOG.md LICENSE docs/installing.md $(DIST)/build/
	@sed 's|/usr/local/bin/|/usr/bin/|' contrib/systemd/reaper-exporter.service > $(DIST)/build/reaper-exporter.service
	@chmod -R u=rwX,go=rX $(DIST)/build && find $(DIST)/build -exec touch -d @$$SOURCE_DATE_EPOCH {} +

.PHONY: release
release: build-release $(TOOLS)/cyclonedx-gomod ## dist/: an archive for amd64, the same bytes each time, with checksums and bills of materials.
	@set -e; dir=$(DIST)/$(RELEASE); rm -rf $$dir; install -d -m 755 $$dir $$dir/bin $$dir/docs; \
	for p in $(SHIPPED) reaper-init; do install -m 755 $(DIST)/build/$$p $$dir/bin/; done; \
	for p in $(SHIPPED); do $(TOOLS)/cyclonedx-gomod bin -json -noserial -notimestamp -version v$(VERSION) \
		-output $(DIST)/$$p-$(VERSION).cdx.json $(DIST)/build/$$p; done; \
	cd $(DIST)/build; cp -pr contrib README.md CHANGELOG.md LICENSE $$dir/; cp -p installing.md $$dir/docs/; \
	tar -C $(DIST) --sort=name --mtime=@$$SOURCE_DATE_EPOCH --owner=0 --group=0 --numeric-owner --format=gnu -cf - $(RELEASE) | \
		gzip -9n > $(DIST)/$(RELEASE).tar.gz; \
	rm -rf $$dir; \
	cd $(DIST) && sha256sum $(RELEASE).tar.gz *-$(VERSION).cdx.json > SHA256SUMS && cat SHA256SUMS

.PHONY: deb rpm
deb rpm: build-release $(TOOLS)/nfpm ## A package for amd64 in dist/.
	@VERSION=$(VERSION) BUILD=$(DIST)/build $(TOOLS)/nfpm package -f packaging/nfpm.yaml -p $@ -t $(DIST)/

.PHONY: test-packages
test-packages: $(TOOLS)/nfpm $(TOOLS)/cyclonedx-gomod ## Do packages and archives install, and are they the same each time (not with SHORT=1)?
	$(GO) test -tags packages -count=1 -timeout 20m $(if $(SHORT),-short,-v) ./integration/packages

.PHONY: test-manifests
test-manifests: ## contrib/ rendered by Helm and kustomize and decoded into the types of Kubernetes' API.
	cd integration/manifests && $(GO) vet . && $(GO) test -count=1 .

.PHONY: clean
clean: ## Remove what was built, except the tools (rm -r bin/tools for those).
	rm -rf $(TESTPROGS) $(BIN)/tracing $(addprefix $(BIN)/,$(COMMANDS) reaper-init reaper-init-arm64) dist

.PHONY: docs
docs: ## Render the pictures in docs/ (needs graphviz).
	dot -Tsvg docs/zombie.dot -o docs/zombie.svg
