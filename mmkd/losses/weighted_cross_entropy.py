"""Cross-entropy with soft targets and a larger weight for the background."""

from __future__ import annotations

from mmdet.registry import MODELS
from torch import Tensor, nn

from .checks import require_non_negative, require_positive
from .reduction import weighted_mean


@MODELS.register_module()
class WeightedCrossEntropy(nn.Module):
    r"""Cross-entropy with the teacher's probabilities as targets, weighted per class.

    .. math:: -\tau^2 \sum_c w_c \, p_c \log q_c, \quad
        p = \mathrm{softmax}(t / \tau), q = \mathrm{softmax}(s / \tau)

    with :math:`w_c = 1` for foreground classes. Chen et al., "Learning Efficient Object Detection Models
    with Knowledge Distillation", NeurIPS 2017, eq. 3. Most errors of a detector confuse objects with
    background, so the background has a larger weight. The minimum is above 0; it is reached where
    :math:`q_c` is proportional to :math:`w_c p_c`.

    Args:
        background_weight: Weight of the background, the last class. The paper uses 1.5 on VOC.
        tau: Temperature.

    Examples:
        >>> import torch
        >>> from mmkd.losses import WeightedCrossEntropy
        >>> loss = WeightedCrossEntropy(background_weight=1.5)
        >>> student = torch.zeros(1, 3)  # two classes and the background, all equally probable
        >>> round(loss(student, torch.tensor([[20.0, 0.0, 0.0]])).item(), 3)  # an object: log(3)
        1.099
        >>> round(loss(student, torch.tensor([[0.0, 0.0, 20.0]])).item(), 3)  # background: 1.5 log(3)
        1.648
    """

    activation = 'softmax'

    def __init__(self, background_weight: float = 1.5, tau: float = 1.0) -> None:
        super().__init__()
        require_positive(tau=tau)
        require_non_negative(background_weight=background_weight)
        self.background_weight = background_weight
        self.tau = tau

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compare scores before a softmax with the background last, shape (N, C).

        ``weight`` has the shape (N,). Returns a scalar.
        """
        log_q = (student.float() / self.tau).log_softmax(-1)
        values = -(teacher.float() / self.tau).softmax(-1) * log_q
        background = values[..., -1:] * (self.background_weight - 1)
        return weighted_mean(values.sum(-1) + background.sum(-1), weight) * self.tau**2
