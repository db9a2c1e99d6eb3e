PYTHON ?= python3
BIN = .venv/bin
PIP = $(BIN)/pip install --quiet --constraint constraints.txt
CHECKED = haze_pipeline training tests bench model_cards spaces

.PHONY: demo space test test-spawn test-lowest test-e2e test-napari style quality docs bench

# Dehazes a real and a simulated image with the checkpoint in the package.
demo: .venv/.installed
	mkdir -p demo
	for name in mitochondria filaments; do $(BIN)/haze-pipeline dehaze spaces/haze-matching/examples/$$name.ome.tif \
		-o demo/$${name}_clear.ome.tif --preview demo/$$name.png || exit; done

# Serves the Space on http://127.0.0.1:7860.
space: .venv/.installed-space
	$(BIN)/python spaces/haze-matching/app.py

# Side by side, file by file, since most tests wait or keep one core busy.
test: .venv/.installed-test
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# The same where worker processes are spawned, as on Windows and macOS.
test-spawn: .venv/.installed-test
	PYTHONPATH=tests/spawn $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# The same with the lowest versions that pyproject.toml allows, in an environment of their own.
test-lowest:
	test -x .venv-lowest/bin/pip || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --constraint constraints-lowest.txt --editable ".[test]"
	.venv-lowest/bin/pip install --quiet --no-deps torchcfm
	.venv-lowest/bin/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# The Space over HTTP, and in Chromium where that is installed.
test-e2e: .venv/.installed-e2e
	$(BIN)/pytest -m e2e

# The plugin in a real viewer, which needs OpenGL: on a screen, or on the virtual one of Xvfb.
test-napari: .venv/.installed-napari
	$(if $(DISPLAY),,xvfb-run --auto-servernum --server-args "-screen 0 1280x1024x24") $(BIN)/pytest -m viewer

style: .venv/.installed-test
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

quality: .venv/.installed-test
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/lint-imports

# The pages of docs/ as a site in site/.
docs: .venv/.installed-test
	$(BIN)/mkdocs build --strict

# Measures what the pages state and renders their tables.
bench: .venv/.installed-test
	$(BIN)/python bench/real_specimens.py
	$(BIN)/python bench/structures.py
	$(BIN)/python bench/real_pairs.py
	$(BIN)/python bench/simulated_pairs.py
	$(BIN)/python bench/solvers.py
	$(BIN)/python bench/sampling.py
	$(BIN)/python bench/loader.py
	$(BIN)/python bench/training.py
	$(BIN)/python bench/regression.py
	$(BIN)/python bench/methods.py
	$(BIN)/python bench/stack_pairs.py
	$(BIN)/python bench/calibration.py
	$(BIN)/python bench/evaluate.py
	$(BIN)/python bench/trust.py
	$(BIN)/python bench/file_runs.py
	$(BIN)/python bench/install.py
	$(BIN)/python bench/formats.py
	$(BIN)/python tests/fuzz_tiffs.py
	$(BIN)/python bench/readme.py

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(PIP) --editable .
	touch $@

# torchcfm holds the reference network of the parity tests; its own dependencies are large and not needed.
.venv/.installed-test: .venv/.installed
	$(PIP) --editable ".[test]"
	$(PIP) --no-deps torchcfm
	touch $@

.venv/.installed-space: .venv/.installed
	$(PIP) --editable ".[space]"
	touch $@

.venv/.installed-e2e: .venv/.installed-test
	$(PIP) --editable ".[e2e]"
	touch $@

.venv/.installed-napari: .venv/.installed-test
	$(PIP) --editable ".[test-napari]"
	touch $@
