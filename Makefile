# What a contributor does here; `make help` lists it. Everything is set up in .venv, nothing elsewhere
# (the embedded Triton goes into the user's cache folder, see `governor triton install`).

SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

# The first of these that is 3.11 or newer and can make virtual environments; or `make PYTHON=...`.
PYTHONS := $(or $(PYTHON),python3 python3.12 python3.11 python3.13)
BIN := .venv/bin
READY := .venv/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

.PHONY: demo
demo: $(READY) ## install a Triton and sample models, then watch the governor work (DEMO='--seconds 60')
	$(BIN)/governor demo $(DEMO)

# The tests on a real server mostly wait for it: the quick ones run meanwhile, and give way. Niceness
# alone would not do that: servers have sessions of their own, and where Linux groups processes by
# session (autogroup), it shares the processors between sessions by their groups' niceness.
USUAL := -m 'not soak and not systemd and not package'
QUICK := tests/unit tests/fuzz tests/integration

.PHONY: test
test: $(READY) ## all tests, on a real Triton too, less soak, systemd and package (TESTS='tests/unit -k name')
ifneq ($(TESTS),)
	$(BIN)/pytest $(USUAL) $(TESTS)
else
	@set -u; told=$$(mktemp); trap 'rm -f "$$told"' EXIT; \
	echo "$(QUICK): run beside the tests on a real server, and told after them."; \
	$$(command -v setsid) sh -c '(echo 19 > /proc/self/autogroup) 2>/dev/null; exec nice -n 19 "$$@"' beside \
	  $(BIN)/pytest $(USUAL) -p no:cacheprovider $(QUICK) >"$$told" 2>&1 & quick=$$!; \
	trap 'kill -TERM $$quick; wait $$quick; cat "$$told"; exit 130' INT TERM; \
	failed=0; $(BIN)/pytest $(USUAL) tests/triton || failed=$$?; \
	wait $$quick || failed=$$?; cat "$$told"; exit $$failed
endif

.PHONY: check
check: $(READY) ## lint, format, types, layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: test-packages
test-packages: $(READY) ## build and install the wheel and the .deb, and do the tutorial: five minutes
	$(BIN)/pytest -m package tests/packaging

.PHONY: soak
soak: $(READY) ## the full counts of every target: two hours and a quarter (TESTS=..., FRESH=--cache-clear)
	@failed=0; $(BIN)/pytest -s -m soak -o timeout=0 $(FRESH) $(or $(TESTS),tests/soak tests/triton) || failed=$$?; \
	if [ -z "$(TESTS)" ]; then \
	  TRITON_GOVERNOR_FUZZ=10000 $(BIN)/pytest -o timeout=0 tests/fuzz || failed=$$?; \
	fi; exit $$failed

.PHONY: benchmark
benchmark: $(READY) ## the governor and its rivals on a simulated Triton, half a minute of each window
	$(BIN)/python benchmarks/replay.py --seconds 30 --seeds 1 --out .benchmark --docs docs/benchmark.md

.PHONY: benchmark-full
benchmark-full: $(READY) ## the same with the whole traces: an hour on two cores; goes on where it was stopped
	$(BIN)/python benchmarks/replay.py --seconds 300 --seeds 1 --out .benchmark --docs docs/benchmark-full.md

.PHONY: benchmark-seeds
benchmark-seeds: $(READY) ## half a minute of each window with ten seeds: an hour on two cores; likewise
	$(BIN)/python benchmarks/replay.py --seconds 30 --seeds 10 --out .benchmark --docs docs/benchmark-seeds.md

.PHONY: reference
reference: $(READY) ## renew what is made from the program: reference, manual pages, completion
	$(BIN)/governor policy schema > policies/policy.schema.json
	$(BIN)/governor policy schema --part > policies/policy-part.schema.json
	$(BIN)/python packaging/reference.py

.PHONY: dist
dist: $(READY) reference ## the wheel and the source distribution, into dist/
	$(BIN)/python -m build --outdir dist .

.PHONY: deb
deb: dist ## the Debian package for this machine's release, into dist/ (PYTHON=/usr/bin/python3.12)
	PYTHON=$(or $(PYTHON),/usr/bin/python3) PIP="$(CURDIR)/$(BIN)/python -m pip" packaging/deb/build.sh

.PHONY: audit
audit: $(READY) ## look the pinned dependencies up in the advisory database (needs the internet)
	@set -eu; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(BIN)/python -m venv "$$folder" && "$$folder/bin/pip" install --quiet pip-audit; \
	"$$folder/bin/pip-audit" --strict --requirement constraints.txt --no-deps --disable-pip

.PHONY: constraints
constraints: ## renew constraints.txt: newest of everything that pyproject.toml allows
	rm -rf .venv
	head -n 2 constraints.txt > constraints.new
	: > constraints.txt
	$(MAKE) $(READY)
	$(BIN)/python -m pip freeze --exclude-editable >> constraints.new
	mv constraints.new constraints.txt
	touch $(READY)

.PHONY: clean
clean: ## remove .venv, caches and results of this folder
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build
	rm -rf .benchmark
	rm -f demo.png demo.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A .venv whose Python is gone (an upgrade, a moved folder) is built anew.
# --no-compile: Python compiles what it imports when it does, which is a part of it: 13 s less.
$(READY): pyproject.toml constraints.txt
	@set -eu; \
	if ! $(BIN)/python -c 'import sys, pip; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  chosen=; incomplete=; \
	  for candidate in $(PYTHONS); do \
	    "$$candidate" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    if "$$candidate" -c 'import venv, ensurepip' 2>/dev/null; then chosen=$$candidate; break; fi; \
	    incomplete=$${incomplete:-$$candidate}; \
	  done; \
	  if [ -z "$$chosen" ] && [ -n "$$incomplete" ]; then \
	    echo "$$incomplete cannot make virtual environments (its venv or ensurepip is missing): install it (Debian, Ubuntu: apt install python3-venv) and run make again." >&2; exit 1; \
	  elif [ -z "$$chosen" ]; then \
	    echo "Python 3.11 or newer is needed, and none of these is one: $(PYTHONS). Install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; \
	  fi; \
	  echo "Setting up .venv with $$("$$chosen" --version), once."; \
	  "$$chosen" -m venv --clear .venv; \
	fi; \
	echo "Installing what pyproject.toml asks for into .venv: a minute or two."; \
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[demo,replay,dev]'; \
	touch $(READY)
