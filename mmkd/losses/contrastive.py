"""Each student embedding selects its teacher embedding among those of the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError
from .checks import require_positive
from .reduction import weighted_mean


@MODELS.register_module()
class Contrastive(nn.Module):
    r"""Cross-entropy of selecting, for each student embedding, its teacher embedding of the batch.

    .. math:: -\log \frac{\exp(s_i \cdot t_i / \tau)}{\sum_j \exp(s_i \cdot t_j / \tau)},
        \quad \|s_i\| = \|t_j\| = 1

    Contrastive representation distillation: Tian, Krishnan, Isola, ICLR 2020 (arXiv 1910.10699), whose
    critic tells pairs from negatives one by one and takes 16,384 negatives from a memory bank. Here,
    after van den Oord et al.: InfoNCE, 2018 (arXiv 1807.03748), eq. 4, the pair competes with the
    negatives of its own batch in one softmax, and no embedding is stored; a projection, which the
    paper has on both sides, is a connector on the student's.

    Its minimum is not 0: with N equal pairs it is :math:`\log(1 + \sum_{j \ne i} e^{(t_i t_j - 1)/\tau})`.

    Args:
        tau: Temperature. The default is that of CRD's published code.
    """

    def __init__(self, tau: float = 0.07) -> None:
        super().__init__()
        require_positive(tau=tau)
        self.tau = tau

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """Embeddings, shape (N, D) each, in pairs; weight of shape (N,); returns a scalar."""
        if student.dim() != 2:
            raise ConfigError(
                f'Contrastive compares embeddings of shape (N, D), got {tuple(student.shape)}'
            )
        student, teacher = (F.normalize(side.float(), dim=-1) for side in (student, teacher))
        similarity = student @ teacher.T / self.tau
        own = torch.arange(len(similarity), device=similarity.device)
        return weighted_mean(F.cross_entropy(similarity, own, reduction='none'), weight)
