# Everything goes through one virtual environment, .venv, made and pinned by `make setup`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-$(shell cat pyproject.toml constraints.txt tools/setup.sh | cksum | cut -d' ' -f1)

.PHONY: setup demo test bench lint clean

setup: $(STAMP)

# The stamp's name carries a checksum of what it depends on: an unchanged tree makes `make setup` a no-op.
$(STAMP):
	@bash tools/setup.sh "$(PYTHON)" "$(VENV)"
	@rm -f $(VENV)/.setup-* && touch $@

demo: setup
	@bash tools/demo.sh "$(BIN)"

test: setup
	@bash tools/fetch_test_weights.sh "$(VENV)"
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: setup
	@for script in tests/benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf demo bench .pytest_cache .ruff_cache .mypy_cache
