# Every target works on a clean clone: it makes .venv if there is none and installs what it needs, once.
PYTHON ?= python3
VENV   ?= .venv
PIP_FLAGS ?=
PY     := $(VENV)/bin/python
JOBS   ?= 2
ARGS   ?=

export OMP_NUM_THREADS ?= 1
# Threads that wait spin briefly, then sleep: spinning on is many times slower on a busy machine (docs/log.md).
export GOMP_SPINCOUNT ?= 10000

.DEFAULT_GOAL := help
.PHONY: help install demo test test-deep test-gpu check format bench docs clean
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(VENV)/.core ## make .venv and install hybridlm into it, editable

demo: $(VENV)/.core ## train a small hybrid on real text for about four minutes, then let it write
	OMP_NUM_THREADS=$(JOBS) $(PY) -m hybridlm.train.demo $(ARGS)

test: $(VENV)/.dev ## the default tests
	$(PY) -m pytest -n $(JOBS) -q $(ARGS)

test-deep: $(VENV)/.dev ## every test, the exhaustive ones too
	HYPOTHESIS_PROFILE=deep $(PY) -m pytest -n $(JOBS) -q -m "not gpu and not llama_cpp" $(ARGS)

test-gpu: $(VENV)/.dev ## the tests that need a GPU
	$(PY) -m pytest -q -m gpu tests/gpu $(ARGS)

check: $(VENV)/.dev ## lint, formatting, direction of imports
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports

format: $(VENV)/.dev ## rewrite the code as `check` wants it
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(VENV)/.core ## tokens/s of each mixer: training, prompt, decoding
	OMP_NUM_THREADS=$(JOBS) $(PY) -m benchmarks zoo --device cpu $(ARGS)

docs: $(VENV)/.docs ## build the documentation into site/, strictly
	$(PY) -m mkdocs build --strict

clean: ## remove .venv, caches and what was built; runs/ stays
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp stands for each set of extras, so that a second `make` starts at once.
$(PY):
	@echo "hybridlm: making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hybridlm needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

define install_extras
	@echo "hybridlm: installing into $(VENV) ($(1))"
	$(PY) -m pip install $(PIP_FLAGS) -c constraints.txt -e '.$(2)'
	@touch $@
endef

$(VENV)/.core: pyproject.toml constraints.txt | $(PY)
	$(call install_extras,core,)

$(VENV)/.dev: pyproject.toml constraints.txt | $(PY)
	$(call install_extras,core + dev + hf + onnx,[dev$(comma)hf$(comma)onnx])
	@touch $(VENV)/.core

$(VENV)/.docs: pyproject.toml constraints.txt | $(PY)
	$(call install_extras,core + docs,[docs])
	@touch $(VENV)/.core

comma := ,
