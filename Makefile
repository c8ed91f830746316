# make demo | earth | app | test | test-fast | test-long | check | format | smoke | pictures | results; see README.md
# The first command creates .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := output/demo
ROOMS := data/rooms
EARTH := output/earth/demo
# Options of a fine-tuning run on a handful of rooms; its folder's name follows.
SMOKE := --data_path $(ROOMS)-smoke/train --eval_data_path $(ROOMS)-smoke/val --epochs 2 \
	--batch_size 8 --warmup_epochs 0 --log_every 1 --finetune output/smoke/pretrain/model.safetensors \
	--output_dir output/smoke

# Furniture models for `make results`: Sweet Home 3D archives, of Debian's package if none are named.
FURNITURE ?= $(SH3D)/usr/share/sweethome3d/furniture/*.sh3f
SH3D := data/sh3d
RESULTS := data/results
PRETRAINED = output/results/pretrain-$(MODEL)
VIEWS ?= 5200
LABELLED ?= 1600
SIZE ?= 160
RENDER = $(BIN)/python tools/make_rooms.py --workers $(shell nproc) --size $(SIZE) --furniture $(FURNITURE)
# Larger, on a GPU: make results MODEL=small VIEWS=30000 SIZE=256 JOBS=1 \
#   PRETRAIN='--input_size 224 --num_encoded_tokens 98' FINETUNE=input_size=224
MODEL ?= tiny
PRETRAIN ?=
FINETUNE ?=
JOBS ?= 2

.PHONY: demo earth app test test-fast test-long test-browser check format smoke pictures results results-finetune results-labels results-ablations results-earth results-data segmenter clean

# A fresh environment from the pinned requirements; remade when they change.
$(READY): requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "the pinned requirements need Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# Render rooms, pre-train a tiny MultiMAE on them, show what it reconstructs.
demo: $(READY)
	$(BIN)/python tools/make_rooms.py --out $(ROOMS) --train 1200 --val 200 --size 160 --workers 2
	$(BIN)/python run_pretraining_multimae.py --config cfgs/pretrain/rooms/demo.yaml
	$(BIN)/python tools/plot_run.py $(DEMO) --out $(DEMO)/loss.png
	$(BIN)/python tools/show_run.py $(DEMO)
	$(BIN)/python tools/make_pictures.py --beside $(DEMO)/model.safetensors --out $(DEMO)

# The same on tiles of the planet: colour, elevation, land cover.
earth: $(READY)
	$(BIN)/python tools/make_earth.py --out data/earth
	$(BIN)/python run_pretraining_multimae.py --config cfgs/pretrain/earth/demo.yaml
	$(BIN)/python tools/plot_run.py $(EARTH) --out $(EARTH)/loss.png
	$(BIN)/python tools/show_run.py $(EARTH)

# The demo page; Ctrl+C stops. make app WEIGHTS='output/mine/model.safetensors output/semseg/model.safetensors'
app: $(READY)
	$(BIN)/python tools/demo_app.py $(if $(WEIGHTS),--weights $(WEIGHTS)) $(if $(PORT),--port $(PORT))

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not browser and not long"

# Kills and restarts of whole runs, compiled steps, exports of every head, the notebooks: ten minutes more.
test-long: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long

# Without the tests that start processes, compile or export: under a minute.
test-fast: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not browser and not slow and not long"

# The page in a real browser: needs Chromium on the PATH, or `python -m playwright install chromium`.
test-browser: $(READY)
	$(BIN)/python -m pytest -m browser tests/browser

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
	$(BIN)/python tools/make_rooms.py --out $(ROOMS)-smoke-taskonomy --layout taskonomy --train 24 --val 8 --size 64 --workers 2
	$(BIN)/python run_pretraining_multimae.py --config cfgs/pretrain/rooms/smoke.yaml
	$(BIN)/python run_finetuning_cls.py --config cfgs/finetune/rooms/cls.yaml $(SMOKE)/cls
	$(BIN)/python run_finetuning_semseg.py --config cfgs/finetune/rooms/semseg.yaml $(SMOKE)/semseg
	$(BIN)/python run_finetuning_depth.py --config cfgs/finetune/rooms/depth.yaml $(SMOKE)/depth
	$(BIN)/python run_finetuning_taskonomy.py --config cfgs/finetune/rooms/taskonomy.yaml \
		$(SMOKE)/taskonomy --data_path $(ROOMS)-smoke-taskonomy --eval_data_path none

# The pictures of the README, from the weights that are shipped.
pictures: $(READY)
	$(BIN)/python tools/make_pictures.py
	$(BIN)/python tools/modality_report.py weights/multimae-tiny_rooms.safetensors examples/rooms \
		--picture docs/images/modality-report.png

# Does pre-training pay? Hours on a CPU; whatever is done already is not done again.
results: results-data
	$(BIN)/python run_pretraining_multimae.py --config cfgs/pretrain/rooms/tiny.yaml \
		--model pretrain_multimae_$(MODEL) --output_dir $(PRETRAINED) $(PRETRAIN)
	$(BIN)/python tools/show_run.py $(PRETRAINED)
	$(BIN)/python tools/export_weights.py $(PRETRAINED)/model.safetensors weights/multimae-$(MODEL)_rooms.safetensors
	$(MAKE) results-finetune

# The same from the weights that are there.
results-finetune: results-data
	$(BIN)/python tools/results.py run cfgs/results/rooms.yaml --size $(MODEL) --jobs $(JOBS) $(if $(FINETUNE),--set $(FINETUNE))
	$(BIN)/python tools/results.py report cfgs/results/rooms.yaml --size $(MODEL)

# How many labels, and which settings of pre-training: plans of cfgs/results.
results-labels results-ablations: results-data
	$(BIN)/python tools/results.py run cfgs/results/rooms-$(@:results-%=%).yaml --size $(MODEL) --jobs $(JOBS)
	$(BIN)/python tools/results.py report cfgs/results/rooms-$(@:results-%=%).yaml --size $(MODEL)

# Tiles of the planet, scored on regions that no training has.
results-earth: $(READY)
	$(BIN)/python tools/make_earth.py --out data/earth
	$(BIN)/python tools/results.py run cfgs/results/earth.yaml --size $(MODEL) --jobs $(JOBS)
	$(BIN)/python tools/results.py report cfgs/results/earth.yaml --size $(MODEL)

# The segmentation model of weights/, from the pre-trained one; an hour on a CPU core.
segmenter: results-data
	$(BIN)/python run_finetuning_semseg.py --config cfgs/finetune/rooms/semseg_rgb.yaml
	$(BIN)/python tools/export_weights.py output/results/semseg-tiny/model.safetensors \
		weights/multimae-tiny_rooms-semseg.safetensors

# Labelled rooms: other views than those of pre-training, scored on furniture that no training has.
results-data: $(READY) $(if $(findstring $(SH3D),$(FURNITURE)),$(SH3D)/.ready)
	$(RENDER) --out $(RESULTS)/labelled --train $(LABELLED) --val 300 --seed 1
	$(RENDER) --out $(RESULTS)/pretrain --train $(VIEWS) --val 200 --seed 0
	$(RENDER) --out $(RESULTS)/taskonomy --train 200 --val 300 --seed 1 --layout taskonomy
	$(RENDER) --out $(RESULTS)/taskonomy-selection --train 1 --val 100 --seed 0 --layout taskonomy

# 820 models, CC0 and CC-BY; Debian and Ubuntu only, elsewhere name your archives in FURNITURE.
$(SH3D)/.ready:
	mkdir -p $(SH3D)
	cd $(SH3D) && apt-get download sweethome3d-furniture && dpkg -x sweethome3d-furniture_*.deb . && touch .ready

clean:
	rm -rf output/smoke $(ROOMS)-smoke $(ROOMS)-smoke-taskonomy .pytest_cache .mypy_cache .ruff_cache
