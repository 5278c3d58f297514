"""The table of measured optimisations in docs/recipes/costs.md is that of the lines committed with it."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_ratios_of_the_lines():
    page = (ROOT / 'docs/recipes/costs.md').read_text()
    rows = [row for row in page.splitlines() if row.startswith('| ')]
    lines = [json.loads(line) for line in open(ROOT / 'benchmarks/optimisations.jsonl')]
    timed = [line for line in lines if 'ratio' in line]
    assert len(timed) >= 9
    for line in timed:
        low, high = line['quartiles']
        cells = [f'{line["ratio"]:.3f} ({low:.3f} to {high:.3f})', f'`{Path(line["config"]).stem}`']
        for peak in line['step_peak_mb_above_weights'].values():
            on, off = (peak[side] + line['weights_mb'] for side in ('on', 'off'))
            cells.append(f'{on / off:.3f}')
        assert any(all(cell in row for cell in cells) for row in rows), cells
    calls = [1 - line['ops_on'] / line['ops_off'] for line in lines if line['trick'] == 'early_end']
    assert f'at most {100 * max(calls):.1f} % fewer operator calls' in page
