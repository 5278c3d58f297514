# make setup   create .venv with pinned versions (PYTHON=python3.12 for another CPython; make clean first)
# make demo    teacher, student and distilled student on synthetic images: a table and two figures
# make test    the tests, two at a time (JOBS=4 for more)
# make lint    ruff (make format applies its formatting), mypy, codespell, words that are avoided
# make docs    the site, into work_dirs/site; a dead link or an undocumented public name fails
# make clean   remove .venv and build outputs; work_dirs/ stays

READY := .venv/.ready
JOBS := 2

.PHONY: help setup demo test lint docs format clean

help:
	@sed -n 's/^# make/make/p' Makefile

setup: $(READY)

$(READY): pyproject.toml setup.py requirements/constraints.txt tools/setup_venv.sh
	@bash tools/setup_venv.sh

demo: $(READY)
	.venv/bin/python tools/demo.py

test: $(READY)
	.venv/bin/python -m pytest tests --numprocesses $(JOBS) --dist loadfile

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/codespell
	.venv/bin/python tests/vocabulary.py

docs: $(READY)
	.venv/bin/ruff check --select D101,D102,D103 mmkd
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

format: $(READY)
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache
