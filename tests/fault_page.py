"""Generate docs/reference/checks.md from the table of faults: ``PYTHONPATH=tests:. python tests/fault_page.py``."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from fault_table import FAULTS, Fault, sound_case

from mmkd.preflight import CHECKS, PlannedRun, examine

PAGE = Path(__file__).parents[1] / 'docs/reference/checks.md'
HEAD = """# Checks before a run

`python -m mmkd check CONFIG` checks a config, its data and its weights, and lists every fault before a
run starts. It reads all annotation files and opens every image. The exit code is 0, or 2 if a run would
fail.

```bash
python -m mmkd check my_config.py
python -m mmkd check my_config.py --cfg-options data_root=data/mine/ --json faults.json
```

Every tool runs the same checks when it starts, on a sample of the images, and stops with one line at the
first error. Large annotation files (COCO above 100 MB, VOC above 5,000 images) are checked after the run
has read them. With MMDetection's own `tools/train.py`, a hook of mmkd runs the checks:
`default_hooks=dict(distillation=dict(type='DistillationHook'))`, or `GuardHook` for a run without
distillation.

| option | meaning |
|---|---|
| `--modes train val test` | the modes that will run (default: all) |
| `--sample` | check only as much data as a training run checks when it starts |
| `--json FILE` | write the results to a JSON file too |

## While a run trains

- A NaN or infinite loss or gradient stops the run before the weights change. The message names the loss
  and the images. The last finite weights are in `last_finite.pth` in the work directory. With
  `MMKD_NAN=warn` the run continues.
- Boxes without width or height are not used for training; the log names their images.
- If an image cannot be read during the run, the run stops with one line that names it.

## The checks

| check | requires |
|---|---|
"""
MESSAGES = """
## Messages

Generated from the table of faults in `tests/fault_table.py`. A warning does not stop a run.
"""


def message(fault: Fault, folder: Path) -> str:
    """The message that ``check`` prints for a fault, without the path of the temporary folder."""
    case = sound_case(folder, fault.form)
    fault.apply(case)
    run = PlannedRun(case.config, ('train', 'val', 'test'), whole=True)
    here = os.getcwd()
    os.chdir(folder)  # some messages have paths relative to the current folder
    try:
        verdicts = list(examine(run))
    finally:
        os.chdir(here)
    for verdict in verdicts:
        for each in verdict.advice if fault.advice else verdict.errors:
            if all(part in str(each) for part in fault.expected):
                text = ' '.join(str(each).split()).replace(f'{folder}/', '')
                # The hash is that of random weights.
                text = re.sub(r'(begins with )[0-9a-f]{8}', r'\1d42c9f51', text)
                return re.sub(r'(\\.|: )(\\d+ missing: ).*', r'\\1\\2…', text)
    raise AssertionError(f'{fault.title}: no check finds it')


def page() -> str:
    """The content of docs/checks.md."""
    lines = [HEAD.rstrip('\n')]
    lines += [f'| {check.name} | {check.summary.rstrip(".")} |' for check in CHECKS]
    lines.append(MESSAGES.rstrip('\n'))
    for kind in dict.fromkeys(fault.kind for fault in FAULTS):
        lines += ['', f'### {kind}', '']
        for fault in FAULTS:
            if fault.kind == kind:
                with tempfile.TemporaryDirectory() as folder:
                    found = message(fault, Path(folder))
                word = 'warning' if fault.advice else 'error'
                what = fault.title[0].upper() + fault.title[1:]
                lines += [f'**{what}** ({word})', '', '```text', found, '```', '']
        lines.pop()
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    from mmengine.registry import init_default_scope

    import mmkd  # noqa: F401

    init_default_scope('mmdet')
    PAGE.write_text(page(), encoding='utf-8')
