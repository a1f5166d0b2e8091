# Two commands on a fresh machine: `make quickstart` shows a verdict, `make test` runs the tests.
# Everything is installed into .venv; a target that was interrupted is simply run again.

# Deleted when it is half-made, so it cannot be pointed at an environment that is used for something else.
override VENV := .venv
RUN := $(VENV)/bin/python -m
QUICKSTART := build/quickstart
READY := $(VENV)/.ready

# A shim of a missing version also answers to its name, so every candidate is asked whether it really is one.
PYTHON ?= $(shell for python in python3 python3.11 python3.12; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

.DEFAULT_GOAL := help
.PHONY: help install quickstart certify-strict test check lint types schema format clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

install: $(READY)  ## create .venv and install safeguard into it, with the tested versions

# .ready is written last: without it the environment is half-made, and one that was being changed is made anew. It means
# nothing once the interpreter it was made with is gone.
$(shell test -x $(VENV)/bin/python || rm -f $(READY))
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with venv is needed; name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test ! -e $(VENV)/.changing && $(RUN) pip --version >/dev/null 2>&1 \
		|| { if test -e $(VENV); then echo "$(VENV) is half-made; making it anew"; fi; rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	@touch $(VENV)/.changing
	$(RUN) pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@rm $(VENV)/.changing && touch $@

# The directory appears complete or not at all, so its record tells whether hardening is done.
MODEL := $(QUICKSTART)/model/hardening.json
$(MODEL): policies/quickstart.yaml | $(READY)
	$(RUN) safeguard harden policies/quickstart.yaml --out $(QUICKSTART)/model --overwrite

# FAIL and INCONCLUSIVE are answers, not accidents: they are explained, and only a run without a verdict fails.
quickstart: $(MODEL)  ## harden and certify the embedded model; show the verdict
	@echo "$(RUN) safeguard certify $(QUICKSTART)/model --out $(QUICKSTART)/run"
	@code=0; $(RUN) safeguard certify $(QUICKSTART)/model --out $(QUICKSTART)/run || code=$$?; \
	case $$code in \
	0) echo "Exit code 0: the model may be released under this policy." ;; \
	1) echo "Exit code 1: the attacks brought a concept back above its limit. The report shows which, and after how many steps." ;; \
	3) echo "Exit code 3: the evidence supports neither PASS nor FAIL. The report names the control or the sample size." ;; \
	*) echo "Exit code $$code: certify ended without a verdict. What it finished is kept; make quickstart goes on from there." >&2; \
	   exit $$code ;; \
	esac

# make itself turns every code but 0 into 2; the line it prints last names the code of certify.
certify-strict: $(MODEL)  ## the same as a release gate: fails unless the verdict is PASS
	$(RUN) safeguard certify $(QUICKSTART)/model --out $(QUICKSTART)/run

test: $(READY)  ## the tests that take minutes, not hours
	$(RUN) pytest --numprocesses logical

check: lint types schema test  ## everything CI looks at

lint: $(READY)
	$(RUN) ruff format --check .
	$(RUN) ruff check .

types: $(READY)
	$(RUN) mypy

# A published schema is written by json_schema.py beside it; writing it anew must change nothing.
schema: $(READY)
	@before=$$(cat safeguard/*/*.schema.json | cksum); \
	for module in $(subst /,.,$(basename $(wildcard safeguard/*/json_schema.py))); do $(RUN) $$module || exit; done; \
	test "$$before" = "$$(cat safeguard/*/*.schema.json | cksum)" \
		|| { echo "a schema was out of date; it has been written anew, commit it" >&2; exit 1; }

format: $(READY)  ## let ruff rewrite what it can
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

clean:  ## remove what the targets above made, the environment included
	rm -rf build dist $(VENV) .pytest_cache .mypy_cache .ruff_cache
