# make setup   create .venv with pinned versions (PYTHON=python3.12 for another CPython; make clean first)
# make demo    teacher, student and distilled student on synthetic images: a table and two figures
# make test    the tests, two at a time (JOBS=4 for more)
# make lint    ruff (make format applies its formatting), mypy, codespell, words that are avoided
# make docs    the site, into work_dirs/site; a dead link or an undocumented public name fails
# make clean   remove virtual environments and build outputs; work_dirs/ stays
#
# STACK=openmmlab with any of them: mmdet 3.3.0 and mmcv 2.1.0 in .venv-openmmlab, not onedl-mmdetection in .venv

STACK := onedl
JOBS := 2

ifeq ($(STACK),onedl)
VENV := .venv
else ifeq ($(STACK),openmmlab)
VENV := .venv-openmmlab
else
$(error STACK: must be onedl or openmmlab, got $(STACK))
endif
READY := $(VENV)/.ready

.PHONY: help setup demo test lint docs format clean

help:
	@sed -n 's/^# \(make\|STACK\)/\1/p' Makefile

setup: $(READY)

$(READY): pyproject.toml setup.py requirements/constraints.txt tools/setup_venv.sh
	@STACK=$(STACK) bash tools/setup_venv.sh

demo: $(READY)
	$(VENV)/bin/python tools/demo.py

test: $(READY)
	$(VENV)/bin/python -m pytest tests --numprocesses $(JOBS) --dist loadfile

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/codespell
	$(VENV)/bin/python tests/vocabulary.py

docs: $(READY)
	$(VENV)/bin/ruff check --select D101,D102,D103 mmkd
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf .venv .venv-openmmlab build *.egg-info .pytest_cache .ruff_cache .mypy_cache
