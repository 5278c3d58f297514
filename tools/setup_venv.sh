#!/usr/bin/env bash
# Create or complete a virtual environment with pinned, tested versions: `make setup` calls this.
#   STACK=…            onedl (default): onedl-mmdetection 3.5.1, in .venv
#                      openmmlab: mmdet 3.3.0 and mmcv 2.1.0, in .venv-openmmlab
#   PYTHON=…           the CPython to use (3.10, 3.11 or 3.12); default: the first that fits, 3.11 preferred
#   PIP_FIND_LINKS=…   folders with wheels to take first, as pip understands it
#   WHEELS=…           a folder that keeps the wheel of mmcv that is built, and is searched first next time
# Can be interrupted and run again: finished steps are quick, and .ready is written last.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

stack=${STACK:-onedl}
case $stack in
    onedl) venv=.venv prefix=onedl- ;;
    openmmlab) venv=.venv-openmmlab prefix= ;;
    *) die "STACK: must be onedl or openmmlab, got $stack" ;;
esac
constraints=requirements/constraints.txt
mmcv=$(grep "^${prefix}mmcv==" "$constraints")
torch=$(grep '^torch==' "$constraints")

fits() { # a CPython of a tested version that can make virtual environments
    "$1" -c 'import sys, ensurepip, venv
sys.exit(not (sys.implementation.name == "cpython" and (3, 10) <= sys.version_info[:2] <= (3, 12)))' \
        >/dev/null 2>&1
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        fits "$PYTHON" || die "PYTHON=$PYTHON must be a CPython 3.10, 3.11 or 3.12 with venv and ensurepip"
        echo "$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3.10 python3 python; do
        if fits "$candidate"; then echo "$candidate"; return; fi
    done
    die "no CPython 3.10, 3.11 or 3.12 with venv and ensurepip on PATH. Install one (Debian, Ubuntu: \
apt-get install python3.11 python3.11-venv python3.11-dev) or name it: make setup PYTHON=/path/to/python3.11"
}

rm -f "$venv/.ready"
if [ -e "$venv" ] && ! fits "$venv/bin/python"; then
    say "Removing $venv: its Python is missing or has an unsupported version"
    rm -rf "$venv"
fi
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    say "Creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi
export PATH="$PWD/$venv/bin:$PATH" # ninja, for building mmcv

pip=("$venv/bin/python" -m pip --disable-pip-version-check)
links=()
# These options are added to PIP_FIND_LINKS and pip's own configuration.
if [ -d ../shared/wheels ]; then links=(--find-links ../shared/wheels); fi
if [ -n "${WHEELS:-}" ]; then
    mkdir -p "$WHEELS"
    links+=(--find-links "$WHEELS")
fi
install() { "${pip[@]}" install -c "$constraints" ${links[@]+"${links[@]}"} "$@"; }

# A wheel works only if it was built for this torch version: load the operators and run two.
mmcv_works() {
    "$venv/bin/python" - "${mmcv%==*}" "${mmcv#*==}" <<'PY'
import sys
from importlib.metadata import version

import torch
from mmcv.ops import RoIAlign, nms

assert version(sys.argv[1]) == sys.argv[2]
boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.5]])
assert len(nms(boxes, torch.tensor([0.9, 0.8]), 0.5)[1]) == 1
rois = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
assert RoIAlign(2)(torch.ones(1, 1, 8, 8), rois).mean() == 1
PY
}

build_mmcv() {
    command -v "${CXX:-c++}" >/dev/null || die "no wheel of $mmcv works, and building it needs a C++ \
compiler; install one (Debian, Ubuntu: apt-get install g++), or name a folder with a wheel in PIP_FIND_LINKS"
    "$venv/bin/python" -c 'import sys, sysconfig, pathlib
sys.exit(not pathlib.Path(sysconfig.get_paths()["include"], "Python.h").exists())' ||
        die "building $mmcv needs Python.h; install it (Debian, Ubuntu: apt-get install python3-dev)"
    jobs=${MAX_JOBS:-$(nproc)}
    say "No wheel of $mmcv works: building it from source with $jobs jobs. This takes 10 minutes or more"
    # The sources stay in .venv until they are built, so an interrupted build continues where it stopped.
    mkdir -p "$venv/src"
    "${pip[@]}" download -q --no-deps --no-binary :all: --no-build-isolation -d "$venv/src" "$mmcv"
    source=$(ls -d "$venv"/src/*mmcv-*.tar.gz)
    tar -xzf "$source" -C "$venv/src" --skip-old-files
    source=${source%.tar.gz}
    # -g0: debug symbols would add 80 MB and minutes.
    MMCV_WITH_OPS=1 CFLAGS="${CFLAGS:-} -g0" MAX_JOBS=$jobs "${pip[@]}" wheel -v --no-deps --no-cache-dir \
        --no-build-isolation -w "$venv/src/wheel" "$source" 2>&1 |
        tee "$venv/src/build.log" | sed -un 's/^ *\(\[[0-9]*\/[0-9]*\]\).*/   mmcv: compiled \1/p' ||
        { tail -n 30 "$venv/src/build.log" >&2; die "building $mmcv failed; all of it: $venv/src/build.log"; }
    "${pip[@]}" install -q --no-deps --force-reinstall "$venv"/src/wheel/*mmcv-*.whl
    mmcv_works || die "$mmcv was built but its ops do not work; see $venv/src/build.log"
    if [ -n "${WHEELS:-}" ]; then cp "$venv"/src/wheel/*mmcv-*.whl "$WHEELS"; fi
    rm -rf "$venv/src"
}

say "pip, setuptools and build tools"
install pip setuptools wheel ninja
say "$torch (may be a large download)"
install "$torch" numpy
if ! mmcv_works 2>/dev/null; then
    say "$mmcv"
    # Its dependencies first: mmcv is imported right after it is installed.
    install "${prefix}mmengine" opencv-python addict yapf
    if ! { "${pip[@]}" install -q --no-deps --no-cache-dir --force-reinstall --only-binary :all: \
        ${links[@]+"${links[@]}"} "$mmcv" 2>/dev/null && mmcv_works; }; then
        build_mmcv
    fi
fi
say "mmdet, mim and mmkd itself"
install --no-build-isolation -e ".[$stack,export,dev,docs]"
say "Checking"
"${pip[@]}" check
mmcv_works || die "mmcv's ops no longer work after the last step; remove $venv and run \`make setup STACK=$stack\` again"
"$venv/bin/python" -c 'import mmkd, torch; print(f"mmkd {mmkd.__version__} with torch {torch.__version__}")'
touch "$venv/.ready"
option=; [ "$stack" = onedl ] || option=" STACK=$stack"
say "Ready. Next: make demo$option, make test$option, or: source $venv/bin/activate"
