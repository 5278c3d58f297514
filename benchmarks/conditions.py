"""Conditions that determine a result besides its config: order of summation, versions, and the files read."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from study import Run

HERE = Path(__file__).resolve().parent
# Training is chaotic: another order of summation leads to other weights after hundreds of steps. The order
# depends on the number of threads and on the instructions that ATen, oneDNN and MKL choose for a processor.
# One thread and AVX2, which x86-64 servers have had since 2015, make it the same on all machines.
THREADS, INSTRUCTIONS = 1, 'avx2'
# The values that select an instruction set in ATen, oneDNN and MKL.
KNOWN_INSTRUCTIONS = {
    'default': ('default', 'SSE41', 'COMPATIBLE'),
    'avx2': ('avx2', 'AVX2', 'AVX2'),
    'avx512': ('avx512', 'AVX512_CORE', 'AVX512'),
}
CHECKSUM_DIGITS = 16  # hexadecimal
# The name of a teacher that the study has trained, among the files of a line.
OWN_TEACHER = 'teacher'


def environment(instructions: str = INSTRUCTIONS, threads: int = THREADS) -> dict[str, str]:
    """The environment of a training process.

    Args:
        instructions: One of :data:`KNOWN_INSTRUCTIONS`.
        threads: Threads per operator.
    """
    names = ('ATEN_CPU_CAPABILITY', 'ONEDNN_MAX_CPU_ISA', 'MKL_CBWR')
    chosen = dict(zip(names, KNOWN_INSTRUCTIONS[instructions], strict=True))
    chosen |= dict(OMP_NUM_THREADS=str(threads), OMP_WAIT_POLICY='PASSIVE')
    return {**os.environ, **chosen}


def observe_process(device: str | None, environment: dict[str, str]) -> dict[str, Any]:
    """Versions, device and arithmetic of a training run on this machine, as its process reports them.

    Args:
        device: ``cpu`` or ``cuda``; None is ``cuda`` if the machine has a GPU.
        environment: The environment of the process.
    """
    command = [sys.executable, str(HERE / 'conditions.py'), device or '']
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _observe(device: str) -> dict[str, Any]:
    import torch

    name = device_name(device)
    threads = torch.get_num_threads()
    cpu = f'{torch.backends.cpu.get_cpu_capability()}, {threads} thread{"s" * (threads > 1)}'
    on_gpu = device != 'cpu' and torch.cuda.is_available()
    return dict(versions=versions(), device=name, arithmetic=name if on_gpu else cpu)


def device_name(device: str | None = None) -> str:
    """The name of the GPU if there is one and ``device`` is not ``cpu``; else the processor and its cores."""
    import torch

    if device != 'cpu' and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'{processor()}, {cores()} cores'


def processor() -> str:
    """The name of the CPU, with family and model: the names on cloud machines do not identify the model."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:  # not on every platform
        return platform.processor() or platform.machine()
    found = dict(re.split(r'\s*:\s*', line, maxsplit=1) for line in reversed(lines) if ':' in line)
    name = found.get('model name', platform.machine())
    return f'{name} (family {found.get("cpu family")}, model {found.get("model")})'


def cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every platform
        return os.cpu_count() or 1


def commit() -> str:
    """The checked-out commit, with ``+changes`` if the code differs from it."""

    def git(*words: str) -> str:
        done = subprocess.run(['git', *words], cwd=HERE.parent, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git('status', '--porcelain', '--', 'mmkd', 'configs', 'tools', 'benchmarks/*.py')
    return git('rev-parse', '--short=12', 'HEAD') + ('+changes' if changed else '')


def versions() -> dict[str, str]:
    import mmcv
    import mmdet
    import mmengine
    import torch

    import mmkd

    packages = (torch, mmcv, mmengine, mmdet, mmkd)
    return {'python': platform.python_version()} | {p.__name__: p.__version__ for p in packages}


def conditions_of(line: dict[str, Any]) -> str:
    """Arithmetic and versions of a line, as text. Only lines with equal text may be compared.

    A line without recorded arithmetic may only be compared with lines of the same machine.
    """
    numbers = {name: line['versions'][name] for name in ('torch', 'mmcv', 'mmengine', 'mmdet')}
    arithmetic = line.get('arithmetic') or f'unrecorded arithmetic on {line["device"]}'
    return f'{arithmetic}; {", ".join(f"{name} {number}" for name, number in numbers.items())}'


def records_arithmetic(line: dict[str, Any]) -> bool:
    """Whether a line records the arithmetic of its run. Older lines do not."""
    return 'arithmetic' in line


def file_checksums(run: Run) -> dict[str, str]:
    """The first digits of the SHA-256 of all files that a run read: weights, annotations, images.

    Images have one checksum per annotation file, over their names and contents. A teacher that the study has
    trained has the checksum of its weights, because its file also contains the time.
    """
    config = run.config.to_dict()
    root = config.get('data_root') or ''
    found: dict[str, str] = {}
    for key, value in _strings(config):
        if key == 'checkpoint' and Path(value).is_file():
            path = Path(value)
            if path.parent.parent == run.folder.parent:  # a sibling: trained by the study
                found[OWN_TEACHER] = _weights_checksum(path)
            else:
                found[path.name] = _file_checksum(path)
    for split in ('train', 'val'):
        for dataset in _datasets((config.get(f'{split}_dataloader') or {}).get('dataset')):
            base = Path(dataset.get('data_root') or root)
            annotations = base / dataset['ann_file']
            name = f'{split}: {annotations.name}'
            found[name] = _file_checksum(annotations)
            prefix = (dataset.get('data_prefix') or {}).get('img', '')
            found[f'{name}, images'] = _images_checksum(annotations, base / prefix)
    return found


def differing_files(lines: Iterable[dict[str, Any]]) -> list[str]:
    """Names of files that do not have the same content in all lines."""
    known: dict[str, set[str]] = {}
    for line in lines:
        for name, checksum in line.get('files', {}).items():
            known.setdefault(name, set()).add(checksum)
    return [name for name, checksums in known.items() if len(checksums) > 1]


def _strings(node: Any) -> Iterator[tuple[str, str]]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in pairs:
        if isinstance(value, (dict, list, tuple)):
            yield from _strings(value)
        elif isinstance(value, str):
            yield str(key), value


def _datasets(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if 'ann_file' in node:
            yield node
        for value in node.values():
            yield from _datasets(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _datasets(value)


def _file_checksum(path: Path) -> str:
    return _sha256(path, path.stat().st_mtime_ns).hex()[:CHECKSUM_DIGITS]


@cache
def _sha256(path: Path, _modified: int) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def _weights_checksum(path: Path) -> str:
    from mmkd.checkpoints import read_checkpoint

    state = read_checkpoint(str(path), str(path))['state_dict']
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:CHECKSUM_DIGITS]


def _images_checksum(annotations: Path, folder: Path) -> str:
    content = json.loads(annotations.read_text(encoding='utf-8'))
    digest = hashlib.sha256()
    for name in sorted({each['file_name'] for each in content['images']}):
        path = folder / name
        digest.update(name.encode() + _sha256(path, path.stat().st_mtime_ns))
    return digest.hexdigest()[:CHECKSUM_DIGITS]


if __name__ == '__main__':
    sys.path.insert(0, str(HERE.parent))
    print(json.dumps(_observe(sys.argv[1])))
