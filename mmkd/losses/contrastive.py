"""Contrastive distillation of embeddings."""

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
    r"""Cross-entropy of finding, for each student embedding, its own teacher embedding in the batch.

    .. math:: -\log \frac{\exp(s_i \cdot t_i / \tau)}{\sum_j \exp(s_i \cdot t_j / \tau)},
        \quad \|s_i\| = \|t_j\| = 1

    The idea is contrastive representation distillation (CRD): Tian, Krishnan and Isola, ICLR 2020 (arXiv
    1910.10699). The form is InfoNCE: van den Oord et al., 2018 (arXiv 1807.03748), eq. 4. Differences to
    CRD:

    - The negatives are the other embeddings of the batch, in one softmax. CRD classifies each pair by
      itself and takes 16,384 negatives from a memory bank.
    - CRD projects both embeddings. Here, a connector projects the student's.

    The minimum is not 0. With N pairs of equal embeddings it is
    :math:`\log(1 + \sum_{j \ne i} e^{(t_i t_j - 1)/\tau})`.

    Args:
        tau: Temperature. The default is that of CRD's published code.

    Examples:
        >>> import torch
        >>> from mmkd.losses import Contrastive
        >>> loss = Contrastive(tau=0.07)
        >>> teacher = torch.eye(4)  # four embeddings that differ
        >>> loss(teacher, teacher).item() < 0.01
        True
        >>> loss(teacher.roll(1, 0), teacher).item() > 10  # each is similar to another's embedding
        True
    """

    def __init__(self, tau: float = 0.07) -> None:
        super().__init__()
        require_positive(tau=tau)
        self.tau = tau

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compare embeddings of shape (N, D); row i of both sides is a pair.

        ``weight`` has the shape (N,). Returns a scalar.
        """
        if student.dim() != 2:
            raise ConfigError(
                f'Contrastive: values must be embeddings of shape (N, D), got {tuple(student.shape)}'
            )
        student, teacher = (F.normalize(side.float(), dim=-1) for side in (student, teacher))
        similarity = student @ teacher.T / self.tau
        pair = torch.arange(len(similarity), device=similarity.device)
        return weighted_mean(F.cross_entropy(similarity, pair, reduction='none'), weight)
