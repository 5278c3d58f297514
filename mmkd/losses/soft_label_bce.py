"""Binary cross-entropy with the teacher's probabilities as labels."""

from __future__ import annotations

import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from .checks import require_non_negative
from .reduction import weighted_mean


@MODELS.register_module()
class SoftLabelBCE(nn.Module):
    r"""Binary cross-entropy with the teacher's probabilities as labels and a focal factor.

    .. math:: \sum_c |p_c - q_c|^\beta \, \big(-p_c \log q_c - (1 - p_c) \log(1 - q_c)\big), \quad
        p = \sigma(t), q = \sigma(s)

    The loss is the mean over rows. This is the quality focal loss of Li et al., "Generalized Focal Loss",
    NeurIPS 2020 (arXiv 2006.04388), with labels in [0, 1]. CrossKD (Wang et al., CVPR 2024, arXiv
    2306.11369) distils class scores with it. With :math:`\beta = 0` it is the plain cross-entropy, with a
    minimum above 0 where both probabilities are equal.

    Args:
        beta: The exponent. A larger value reduces the loss of small differences further. The paper uses 2.

    Examples:
        >>> import torch
        >>> from mmkd.losses import SoftLabelBCE
        >>> loss = SoftLabelBCE(beta=2.0)
        >>> teacher = torch.tensor([[3.0, -3.0], [-2.0, 1.0]])
        >>> loss(teacher, teacher).item() < 1e-6
        True
        >>> loss(-teacher, teacher).item() > 1
        True
    """

    activation = 'sigmoid'

    def __init__(self, beta: float = 2.0) -> None:
        super().__init__()
        require_non_negative(beta=beta)
        self.beta = beta

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compare scores before a sigmoid, shape (N, C).

        ``weight`` has the shape (N,). Returns a scalar.
        """
        student, label = student.float(), teacher.float().sigmoid()
        values = F.binary_cross_entropy_with_logits(student, label, reduction='none')
        if self.beta:
            # For beta < 1 the gradient of x ** beta is infinite at 0.
            distance = (label - student.sigmoid()).abs().clamp(min=1e-12)
            values = values * distance.pow(self.beta)
        return weighted_mean(values.sum(-1), weight)
