# make demo and make test are all that most people need. Both do their own set-up:
# Debian packages with apt-get, tools from the Go module proxy at the versions of
# integration/tools and integration/lint.

GO ?= go
BIN := $(CURDIR)/.cache/bin
export CGO_ENABLED ?= 0

PACKAGES := runc erofs-utils e2fsprogs mmdebstrap attr tar gzip xz-utils ca-certificates
FUZZ_TIME ?= 60000x

.PHONY: build tools packages demo test unit race integration vm-test chaos chaos-short metamorphic metamorphic-short fuzz lint bench clean

build:
	$(GO) build -o bin/ ./cmd/...

# The commands and pinned tools, in .cache/bin, where tests, benchmarks and the demo look
# for them.
tools: packages
	@mkdir -p $(BIN)
	$(GO) build -o $(BIN)/ ./cmd/...
	cd integration/tools && $(GO) build -o $(BIN)/ \
		github.com/containerd/containerd/v2/cmd/containerd \
		github.com/containerd/containerd/v2/cmd/ctr \
		github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2 \
		github.com/distribution/distribution/v3/cmd/registry

packages:
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	fi

demo: tools
	@$(GO) run ./integration/demo

# Everything. Only the race detector needs cgo.
test: tools unit race metamorphic-short fuzz integration chaos-short vm-test

# Tests of every package that need no root, no feature of the kernel and no program
# besides go.
unit:
	$(GO) vet ./...
	$(GO) test -short ./...

# Every package with tests under the race detector, on the host's kernel, as root.
# The race detector is also on in the two packages that have targets of their own:
# integration and metamorphic-short.
race:
	CGO_ENABLED=1 $(GO) test -race -timeout 15m $$($(GO) list ./... | grep -v -e '/integration$$' -e '/integration/metamorphic$$')

integration:
	CGO_ENABLED=1 $(GO) test -race -timeout 20m ./integration

# Kill the daemon and its keepers under containers that read. The whole run, which
# writes docs/reliability.md, takes an hour; make test runs a part of it.
chaos: tools
	$(GO) run ./integration/chaos -write
	$(GO) run ./integration/vm -run "TestKilledDaemon|TestEverybody" -kills 600 -limit 40m

chaos-short: tools
	$(GO) run ./integration/chaos -kills 40 -points 12 -pairs 10 -all 2 -cuts 1 -fulls 2

# Random sequences of operations and faults on a node, compared with a model; SEED is
# that of the first sequence. The whole run takes hours; make test runs a part of it.
SEED ?= 1
metamorphic: packages
	$(GO) test -timeout 24h ./integration/metamorphic -seed $(SEED) -sequences 20000 -limit 20h -steps 0 -v

metamorphic-short: packages
	CGO_ENABLED=1 $(GO) test -race -timeout 10m ./integration/metamorphic -seed $(SEED) -sequences 20000 -limit 60s -steps 10

# The cachefiles transport on Debian's 6.1 and 6.12 kernels, in QEMU. The kernels and
# the root file system are made once, in .cache/vm. The packages that only this target
# needs are installed here.
VM_PACKAGES := qemu-system-x86 e2fsprogs kmod cpio gcc-12 make libelf1
vm-test: tools
	@$(MAKE) --no-print-directory packages PACKAGES="$(VM_PACKAGES)"
	$(GO) vet -tags vm ./integration/vm/...
	$(GO) run ./integration/vm

# Each decoder's fuzz target, for a number of inputs: with a time limit go test may fail
# with its own "context deadline exceeded".
fuzz:
	@for t in ./erofs:FuzzReadTar ./erofs:FuzzCheck ./fetcher/inflate:FuzzReader ./fetcher/inflate:FuzzExpand \
		./fetcher/index:FuzzDecodeHead ./fetcher/index:FuzzMap ./fetcher/predict:FuzzImports ./ondemand:FuzzRecord ./ondemand/fanotify:FuzzDecode ./ondemand/cachefiles:FuzzDecode; do \
		echo "fuzz $$t"; \
		$(GO) test -run '^$$' -fuzz "^$${t#*:}$$" -fuzztime $(FUZZ_TIME) -fuzzminimizetime 20x "$${t%:*}" || exit 1; \
	done

lint:
	cd integration/lint && $(GO) build -o $(BIN)/ github.com/golangci/golangci-lint/v2/cmd/golangci-lint mvdan.cc/gofumpt
	@out=$$($(BIN)/gofumpt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "not formatted (gofumpt -w):"; echo "$$out"; exit 1; fi
	$(BIN)/golangci-lint run ./...

bench: tools
	$(GO) run ./integration/bench

clean:
	rm -rf bin .cache
