# make demo and make test set everything up by themselves. PYTHON=python3 uses that Python as it is, without .venv.

ifdef PYTHON
PY := $(PYTHON)
READY := .ready-$(notdir $(PYTHON))
else
PY := .venv/bin/python
READY := .venv/.ready
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
endif
PIP_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test test-scale lint docs gpu default clean

help:            ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

install: $(READY)  ## .venv with the package (editable), training, serving and development tools

.venv/.ready: setup.py pyproject.toml constraints.txt
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "VideoMaker needs Python 3.11 or newer; $$(python3 --version) is first on PATH"; exit 1; }
	test -x .venv/bin/python || python3 -m venv .venv
	.venv/bin/python -m pip install -q $(PIP_ARGS) -c constraints.txt setuptools wheel
	.venv/bin/python -m pip install -q $(PIP_ARGS) -c constraints.txt torch
	.venv/bin/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e '.[train,serve,dev]'
	@touch $@

# A Python that is given is not changed but for this package itself; its torch, triton, numpy and pytest are used.
.ready-%:
	$(PY) -m pip install -q -e . --no-deps --no-build-isolation

demo: $(READY)   ## videos of three bundled pictures by the embedded model: outputs/demo
	$(PY) -P -m videomaker generate --reference videomaker/assets --prompt videomaker/assets/prompts.txt \
		--combine pairs --contact-sheet --overwrite --output outputs/demo

test: export HF_HUB_OFFLINE = 1
# Tiny models on several threads wait for each other more than they compute.
test: export OMP_NUM_THREADS = 1
# Else every worker starts more processes that import torch, to compile on cores that are taken.
test: export TORCHINDUCTOR_COMPILE_THREADS = 1
test: $(READY)   ## all tests that need no GPU
	$(PY) -P -m pytest tests -m "not scale" $(PARALLEL)  # -P: the folder kernels/ must not hide a package of that name

# What cannot be installed here is said, and its tests are skipped with the reason. Ray's tests come with Ray alone.
test-scale: export HF_HUB_OFFLINE = 1
test-scale: export OMP_NUM_THREADS = 1
test-scale: $(READY)  ## with real services: PostgreSQL, an S3 store, Ray; installs them
ifndef PYTHON
	for extra in scale-test ray; do $(PY) -m pip install -q --retries 1 --timeout 15 $(PIP_ARGS) \
		-c constraints.txt -e ".[$$extra]" || echo "the extra $$extra cannot be installed here: its tests are skipped"; done
endif
	$(PY) -P -m pytest -m scale tests/test_scale_*.py tests/test_serve_queue.py tests/test_serve_migrate.py

lint: $(READY)   ## style, formatting, types, the order of the rooms, import circles
	$(PY) -P .ci/lint.py

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(READY)   ## the manual as a site: build/site/index.html
	$(PY) -P .ci/lint.py --lay-out
	$(PY) -P -m mkdocs build --strict

# Installs nothing and needs no network: without .venv the machine's own python3, which has torch and triton.
gpu:             ## everything that needs a CUDA device, one JSON; ARGS="--deadline 530 --resume --copy FILE"
	$(or $(PYTHON),$(if $(wildcard .venv/bin/python),.venv/bin/python,python3)) bench/gpu.py $(ARGS)

default: $(READY) ## trains the embedded model anew: hours on a CPU, goes on after an interruption
	$(PY) -P train/default.py

clean:           ## what the other targets made
	rm -rf .venv .ready-* build dist outputs *.egg-info
