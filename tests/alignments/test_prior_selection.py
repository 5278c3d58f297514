"""What the sum over priors is divided by, in several processes."""

from __future__ import annotations

import ddp_worker
import torch
from torch.multiprocessing import spawn


def test_a_normalizer_that_one_process_did_not_record_is_that_of_the_others(tmp_path):
    """FCOS does not call its box loss where the images of a process show no object."""
    spawn(ddp_worker.divisors, (2, str(tmp_path)), nprocs=2)
    for rank in range(2):
        recorded, nowhere = torch.load(tmp_path / f'rank{rank}.pth')
        assert recorded == 5 and nowhere == 1
