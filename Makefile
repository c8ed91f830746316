# make demo | test | check | format | smoke     each sets up .venv by itself; see README.md

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := output/demo
ROOMS := data/rooms

.PHONY: demo test check format smoke clean

# A fresh environment from the pinned requirements; remade when they change.
$(READY): requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "the pinned requirements need Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# Render rooms, pre-train a tiny MultiMAE on them, show what it reconstructs.
demo: $(READY)
	$(BIN)/python tools/make_rooms.py --out $(ROOMS) --train 1200 --val 200 --size 160 --workers 2
	$(BIN)/python run_pretraining_multimae.py --config cfgs/pretrain/rooms/demo.yaml
	$(BIN)/python tools/plot_run.py $(DEMO) --out $(DEMO)/loss.png
	$(BIN)/python tools/show_run.py $(DEMO)

test: $(READY)
	$(BIN)/python -m pytest -n 2

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every script to its end on a handful of rooms, in a minute or two.
smoke: $(READY)
	$(BIN)/python tools/make_rooms.py --out $(ROOMS)-smoke --train 24 --val 8 --size 64 --workers 2
	$(BIN)/python run_pretraining_multimae.py --config cfgs/pretrain/rooms/smoke.yaml

clean:
	rm -rf output/smoke $(ROOMS)-smoke .pytest_cache .mypy_cache .ruff_cache
