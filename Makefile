# What one can do here; `make` alone lists it.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
# Servers and tools that the tests run for real, as Debian names them.
DEBIAN := influxdb victoria-metrics prometheus chromium hping3 iproute2 iputils-ping nftables tcpdump procps irtt systemd

.DEFAULT_GOAL := help
.PHONY: help venv system lint types test demo bench bench-pinpoint fuzz interop lowest clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "LLAMA needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[test]'
	@touch $@

venv: $(VENV)/.installed  ## a virtual environment with LLAMA in it

system:  ## Debian packages for the tests (root on Debian only)
	@sh .ci/debian-packages $(DEBIAN)

lint: venv  ## ruff, check and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv  ## mypy
	$(BIN)/mypy

# What fails in company, as on a machine that is too slow for it, must pass alone.
at_a_time = { $(BIN)/python -m pytest -m "$(2)" -n $(1) --dist loadfile --no-loadscope-reorder \
  || $(BIN)/python -m pytest -m "$(2)" --last-failed; }

test: venv system lint types lowest  ## everything that must pass; ARGS="tests/net -x" for some of it
ifeq ($(ARGS),)
	@# Most tests wait most of the time, so several run at a time, those that mind no company first.
	status=0; $(call at_a_time,3,not quiet) || status=1; $(call at_a_time,2,quiet) && exit $$status
else
	$(BIN)/python -m pytest $(ARGS)
endif

demo: venv  ## three sites on this machine, one fault to find; ARGS=--once ends by itself
	@$(BIN)/llama demo $(ARGS)

bench: venv system  ## speed and accuracy, as ratios against C in the same run
	$(BIN)/python -m benchmarks $(ARGS)

bench-pinpoint: venv system  ## does it name the fault? (root; 1 h 50 min) ARGS="--seed 7 --quiet-minutes 0"
	$(BIN)/python -m benchmarks.pinpoint $(ARGS)

fuzz: venv  ## coverage-guided fuzzing of the packet formats; ARGS="tlv 600"
	$(BIN)/python -m pip install --quiet -e '.[fuzz]'
	$(BIN)/python tests/fuzz $(ARGS)

interop: venv  ## other implementations on this machine, both ways; ARGS="twampy=/path/to/twampy/src"
	@$(BIN)/python tests/interop $(ARGS)

lowest: venv  ## LLAMA with the oldest dependencies that pyproject.toml allows
	@$(BIN)/python tests/lowest $(VENV)/lowest

clean:  ## remove what was built here
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
