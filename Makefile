# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Everything lives in .venv; PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
LOWEST := .venv-lowest
RUN    ?= runs/digits

.PHONY: demo test check docs lowest install bench clean

# One thread: on networks this small more gain little, and wait for each other on a busy machine.
demo: install  ## the whole method on scikit-learn's digits: table, plot, models
	$(BIN)/prenas run digits --out $(RUN) --threads 1
	$(BIN)/prenas specialize $(RUN) --max-params 120k --threads 1

test: install docs  ## lint, types, the documentation site, every test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=10

check: install  ## the quick form for every day: lint, types, fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -q -m "not slow"

docs: install  ## the documentation site in build/site; a broken link is an error
	rm -rf build/docs build/site && mkdir -p build/docs
	cp -R README.md CHANGELOG.md CONTRIBUTING.md CITATION.cff docs results examples build/docs
	$(BIN)/zensical build --strict --clean

lowest: $(LOWEST)/installed  ## fast tests with the lowest declared versions of everything (GBs to download)
	$(LOWEST)/bin/pytest -n 2 --dist loadfile -q -m "not slow"

# Every `>=` of pyproject.toml as `==`, so that what is tested is what is declared.
$(LOWEST)/installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	grep -oE '"[A-Za-z0-9._-]+>=[0-9.]+"' $< | grep -v setuptools | tr -d '"' | sed 's/>=/==/' \
		> $(LOWEST)/constraints.txt
	$(LOWEST)/bin/pip install --quiet uv  # pip looks for a quarter of an hour
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python \
		--constraint $(LOWEST)/constraints.txt --editable '.[dev]'
	touch $@

bench: install  ## ratios measured side by side, printed and saved under results/
	$(BIN)/python -m benchmarks

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,executorch]'
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) .mypy_cache .pytest_cache .ruff_cache .hypothesis
