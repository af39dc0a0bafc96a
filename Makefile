# `make run` and `make test` do everything on a fresh clone, the environment included.

PYTHON ?= python3
VENV   := .venv
PIP    := $(VENV)/bin/python -m pip --disable-pip-version-check
# The pinned closure of this machine: an NVIDIA driver means CUDA.
CLOSURE := $(if $(wildcard /dev/nvidiactl),requirements/cuda.txt,requirements/cpu.txt)
TORCH  := $(shell sed -n 's/^torch==//p' requirements/cpu.txt)
# Processes of tests. Each may train or start vLLM: reckon with 4 GiB and a core for one, or half a GPU's memory.
JOBS   ?= $(if $(findstring cuda,$(CLOSURE)),1,2)
CPU_TORCH_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: setup run test test-long check audit fix bench bench-collapse clean

setup: $(VENV)/.ready  ## make .venv with the pinned closure

$(VENV)/.ready: $(CLOSURE) requirements/dev.txt pyproject.toml Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	# torch's CPU build: from the configured index if it is there, else from PyTorch's own.
	$(if $(findstring cpu,$(CLOSURE)),$(PIP) install -q --no-deps "torch==$(TORCH)+cpu" || \
	  $(PIP) install -q --no-deps --index-url $(CPU_TORCH_INDEX) "torch==$(TORCH)+cpu")
	$(PIP) install -q --no-deps -r $(CLOSURE) -r requirements/dev.txt
	$(PIP) install -q --no-deps -e .
	touch $@

run: setup  ## five rounds on the packaged model; a monitor stop (exit 3) is a result
	$(VENV)/bin/python -m ssd_loop --rounds 5 || [ $$? -eq 3 ]

test: setup  ## every test; a file's tests stay in one process, for they share what takes long to make
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile

test-long: setup  ## what takes hours: a run killed two hundred times, 20 of them while vLLM draws
	$(VENV)/bin/python -m pytest -s -m long

check: setup  ## format, lint, types, fast tests
	$(VENV)/bin/ruff format --check ssd_loop tests benchmarks
	$(VENV)/bin/ruff check ssd_loop tests benchmarks
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -m "not slow and not long"
	$(MAKE) --no-print-directory audit

# Known holes in what is pinned. pip-audit would bring some twenty packages of its own into the environment, so it
# is run apart, by uvx or pipx where one is there; without them or without a network it says so and fails nothing.
AUDIT := pip-audit --no-deps --disable-pip --progress-spinner off -r $(CLOSURE) -r requirements/dev.txt

audit:  ## look up the pinned packages among known vulnerabilities
	@run=$$(command -v uvx || { command -v pipx >/dev/null && echo "pipx run"; } || true); \
	if [ -z "$$run" ]; then echo "audit skipped: neither uvx nor pipx is here"; exit 0; fi; \
	said=$$(timeout 120 $$run $(AUDIT) 2>&1) && { echo "audit: no known vulnerability"; exit 0; }; \
	case "$$said" in *"Found "*"known vulnerabilit"*) echo "$$said"; exit 1;; esac; \
	echo "audit skipped: the advisory service cannot be asked"

fix: setup  ## format and mend what can be mended
	$(VENV)/bin/ruff format ssd_loop tests benchmarks
	$(VENV)/bin/ruff check --fix ssd_loop tests benchmarks

bench: setup  ## how fast it is, against its parts' plain use and the machine; an hour on two cores
	$(VENV)/bin/python -m benchmarks.speed --out build/speed

bench-collapse: setup  ## how often the monitors cry wolf and how late they are; an hour on two cores
	$(VENV)/bin/python -m benchmarks.collapse.tier_a --out build/collapse

clean:  ## remove the environment; runs and checkpoints stay
	rm -rf $(VENV)
