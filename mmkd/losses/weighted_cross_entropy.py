"""Cross-entropy with soft targets in which the background counts more."""

from __future__ import annotations

from mmdet.registry import MODELS
from torch import Tensor, nn

from .checks import require_non_negative, require_positive
from .reduction import weighted_mean


@MODELS.register_module()
class WeightedCrossEntropy(nn.Module):
    r"""Cross-entropy with the teacher's probabilities, each class by a weight.

    .. math:: -\tau^2 \sum_c w_c \, p_c \log q_c, \quad
        p = \mathrm{softmax}(t / \tau), q = \mathrm{softmax}(s / \tau)

    with :math:`w_c = 1` for foreground classes. Chen et al.: Learning Efficient Object Detection Models
    with Knowledge Distillation, NeurIPS 2017, eq. 3: in detection most mistakes are between objects and
    background, so the teacher's background counts more. Its minimum is above 0, where :math:`q_c` is
    proportional to :math:`w_c p_c`.

    Args:
        background_weight: Weight of the background, the last class; the paper's 1.5 on VOC.
        tau: Temperature.
    """

    activation = 'softmax'

    def __init__(self, background_weight: float = 1.5, tau: float = 1.0) -> None:
        super().__init__()
        require_positive(tau=tau)
        require_non_negative(background_weight=background_weight)
        self.background_weight = background_weight
        self.tau = tau

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """Scores, background last, shape (N, C) each; weight of shape (N,); returns a scalar."""
        log_q = (student.float() / self.tau).log_softmax(-1)
        values = -(teacher.float() / self.tau).softmax(-1) * log_q
        background = values[..., -1:] * (self.background_weight - 1)
        return weighted_mean(values.sum(-1) + background.sum(-1), weight) * self.tau**2
