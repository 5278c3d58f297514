"""The teacher's probabilities as labels of a sigmoid head."""

from __future__ import annotations

import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from .checks import require_non_negative
from .reduction import weighted_mean


@MODELS.register_module()
class SoftLabelBCE(nn.Module):
    r"""Binary cross-entropy with the teacher's probabilities as labels, focused on disagreement.

    .. math:: \sum_c |p_c - q_c|^\beta \, \big(-p_c \log q_c - (1 - p_c) \log(1 - q_c)\big), \quad
        p = \sigma(t), q = \sigma(s)

    and the mean over rows. The quality focal loss (Li et al.: Generalized Focal Loss, NeurIPS 2020,
    arXiv 2006.04388), whose label is a number in [0, 1] too; CrossKD (Wang et al., CVPR 2024, arXiv
    2306.11369) distils classes with it. With :math:`\beta = 0` it is the plain cross-entropy,
    which has its minimum, above 0, where both agree.

    Args:
        beta: The exponent; the larger, the less a small disagreement counts. The paper's is 2.
    """

    activation = 'sigmoid'

    def __init__(self, beta: float = 2.0) -> None:
        super().__init__()
        require_non_negative(beta=beta)
        self.beta = beta

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """Scores before a sigmoid, shape (N, C) each; weight of shape (N,); returns a scalar."""
        student, label = student.float(), teacher.float().sigmoid()
        values = F.binary_cross_entropy_with_logits(student, label, reduction='none')
        if self.beta:
            # The power of 0 has no gradient where beta < 1.
            distance = (label - student.sigmoid()).abs().clamp(min=1e-12)
            values = values * distance.pow(self.beta)
        return weighted_mean(values.sum(-1), weight)
