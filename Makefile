# make demo: both twins trained on digits, judged, converted, evaluated. make test: the proofs. make docs: the site.
# All set themselves up.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin

.PHONY: demo quick test test-slow test-mutations test-minimal lint docs package setup clean

demo: setup
	@set -e; run=runs/demo-$$(date +%Y%m%d-%H%M%S); \
	$(BIN)/twinvit parity --preset=digits --run_dir=$$run; \
	$(BIN)/twinvit convert $$run/jax $$run/from_jax.safetensors --to=torch; \
	echo "the JAX run's weights, evaluated in PyTorch:"; \
	$(BIN)/python train_torch.py --mode=eval --preset=digits --init_from=$$run/from_jax.safetensors; \
	echo "figure: $$run/curves.png"

# Only the files that have quick tests: to import all of them takes longer than to run these.
quick: setup
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m quick $$(grep -lr --include="test_*.py" mark.quick parity_tests)

# Files in the order of parity_tests/conftest.py, not by their number of tests.
BY_FILE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: setup
	$(BIN)/python -m pytest $(BY_FILE) -m "not slow"

test-slow: setup
	FORK_SERVER=0 XLA_FLAGS= $(BIN)/python -m pytest $(BY_FILE) -m slow

# Which of the committed mutations no test sees; QUICK=1: by the quick tier alone.
test-mutations: setup
	$(BIN)/python parity_tests/mutate.py $(if $(QUICK),--quick)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs/ready
	PATH=$(CURDIR)/.venv/docs/bin:$$PATH NO_MKDOCS_2_WARNING=1 mkdocs build --strict
	@echo "the site: build/site; to read and search it: $(PYTHON) -m http.server --bind 127.0.0.1 --directory build/site"

# The explainer, the models and conversion without what only training needs.
MINIMAL := numpy scipy safetensors ml_dtypes
MINIMAL_TESTS := logits.py gradients.py port_ops.py port_short.py rates.py verdict_arithmetic.py weights_short.py
test-minimal:
	$(PYTHON) -m venv build/minimal
	build/minimal/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	build/minimal/bin/pip install --quiet --disable-pip-version-check -c constraints.txt $(MINIMAL) jax flax pytest
	build/minimal/bin/pip install --quiet --disable-pip-version-check --no-deps .
	OMP_NUM_THREADS=1 build/minimal/bin/python -m pytest -m quick $(addprefix parity_tests/test_,$(MINIMAL_TESTS))

# What is uploaded (RELEASE.md): built, its metadata checked, and the installed wheel run where nothing else is.
package:
	rm -rf dist build/package build/installed
	$(PYTHON) -m venv build/package
	build/package/bin/pip install --quiet --disable-pip-version-check build twine
	build/package/bin/python -m build --quiet
	build/package/bin/twine check --strict dist/*
	$(PYTHON) -m venv build/installed
	build/installed/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	build/installed/bin/pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd build/installed && bin/twinvit --version && bin/twinvit models && bin/twinvit port causes > causes.txt
	cd build/installed && bin/twinvit train --preset=digits --device=cpu --world_size=1 --steps=20 --run_dir=run

setup: .venv/ready

# torch first and by its exact version: a range may take a newer build with gigabytes of GPU libraries. timm and
# torchvision, which only tests and benchmarks need, come without dependencies for the same reason.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps timm torchvision
	@touch $@

# Without the project and its frameworks, which the site is built without.
DOCS := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])
.venv/docs/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv/docs
	$(PYTHON) -c '$(DOCS)' | xargs .venv/docs/bin/pip install --quiet --disable-pip-version-check -c constraints.txt
	@touch $@

clean:
	rm -rf .venv build/site
