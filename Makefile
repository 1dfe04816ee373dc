# make demo   one prompt to one video in out/
# make test   every check that needs no GPU
# Both make .venv the first time; PYTHON=/path/to/python3 picks the interpreter.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check
TORCH := $(shell sed -n 's/^torch==//p' requirements.txt)
CPU_WHEELS := https://download.pytorch.org/whl/cpu
SOURCES := setup.py pyproject.toml CMakeLists.txt $(wildcard csrc/*.c* csrc/include/streamt1/*)

.PHONY: demo test clean prerequisites

demo: $(VENV)/.built
	@mkdir -p out
	$(RUN) -m runtime "a red circle moving right quickly on a navy background" -o out/demo.mp4 --trace out/demo.json

# The types are checked on the files laid out as in a wheel: mypy cannot follow the checkout's layout.
test: $(VENV)/.built
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	rm -rf build/typed && $(RUN) setup.py -q build_py --build-lib build/typed
	cd build/typed && ../../$(RUN) -m mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(RUN) -m pytest -q -n auto --maxprocesses 4 --dist worksteal

clean:
	rm -rf $(VENV) build dist out *.egg-info runtime/_C.*.so

# torch first and by itself. The default index's wheel for Linux brings gigabytes of CUDA, so a machine
# without an NVIDIA driver takes the CPU wheel where its index can be reached.
$(VENV)/.packages: requirements.txt
	@$(MAKE) --no-print-directory prerequisites
	$(PYTHON) -m venv $(VENV)
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null && $(RUN) -c \
	    'import urllib.request as u; u.urlopen("$(CPU_WHEELS)/torch/", timeout=10)' 2>/dev/null; \
	then $(PIP) install torch==$(TORCH)+cpu --extra-index-url $(CPU_WHEELS) || $(PIP) install torch==$(TORCH); \
	else $(PIP) install torch==$(TORCH); fi
	$(PIP) install -q -r requirements.txt
	@touch $@

$(VENV)/.built: $(VENV)/.packages $(SOURCES)
	$(PIP) install -q --no-build-isolation --no-deps -e .
	@touch $@

prerequisites:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	  || { echo "$(PYTHON): want Python 3.10 or newer; install python3 or set PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "$(PYTHON): the venv module is incomplete; install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig as s; os.stat(s.get_path("include") + "/Python.h")' 2>/dev/null \
	  || { echo "$(PYTHON): Python.h is missing; install python3-dev"; exit 1; }
	@command -v $(or $(CXX),g++) >/dev/null \
	  || { echo "$(CXX): no C++ compiler found; install g++ (Debian: build-essential)"; exit 1; }
