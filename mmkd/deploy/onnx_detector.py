"""Run an exported detector with the interface of an mmdet detector."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor

from .onnx_file import INPUT, OUTPUTS


class RuntimeDetector(ABC):
    """Runs an exported file image by image, with the number of threads that torch uses."""

    @abstractmethod
    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """``dets``, ``labels`` and ``num_dets`` for images of shape ``(images, height, width, 3)``."""

    def detect(self, image: Tensor) -> InstanceData:
        """The boxes of one image.

        Args:
            image: ``(3, height, width)``, as the test pipeline returns it.
        """
        dets, labels, counts = self.run(image.permute(1, 2, 0)[None].contiguous().numpy())
        return instances(dets[0], labels[0], counts[0])

    def test_step(self, data: dict[str, Any]) -> list[DetDataSample]:
        """Same interface as in mmdet: returns samples with boxes in px of the original images.

        Args:
            data: A batch of the test data loader.
        """
        samples = []
        for image, sample in zip(data['inputs'], data['data_samples'], strict=True):
            found = self.detect(image)
            factor = found.bboxes.new_tensor(sample.metainfo['scale_factor']).repeat(2)
            found.bboxes /= factor
            sample.pred_instances = found
            samples.append(sample)
        return samples


def instances(dets: np.ndarray, labels: np.ndarray, count: int) -> InstanceData:
    """The boxes of one image, without unused rows."""
    values = torch.from_numpy(dets[:count])
    return InstanceData(
        bboxes=values[:, :4].clone(),
        scores=values[:, 4].clone(),
        labels=torch.from_numpy(labels[:count]),
    )


class OnnxDetector(RuntimeDetector):
    """Runs an exported file in ONNX Runtime on the CPU."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=['CPUExecutionProvider']
        )

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """See :meth:`RuntimeDetector.run`."""
        return self.session.run(list(OUTPUTS), {INPUT: images})


class OpenVinoDetector(RuntimeDetector):
    """Runs an exported file in OpenVINO on the CPU."""

    def __init__(self, path: Path) -> None:
        import openvino

        options = {
            'INFERENCE_NUM_THREADS': torch.get_num_threads(),
            # By default OpenVINO uses half precision if the processor supports it.
            'INFERENCE_PRECISION_HINT': 'f32',
        }
        self.compiled = openvino.Core().compile_model(str(path), 'CPU', options)

    @staticmethod
    def available() -> bool:
        """Whether the package openvino is installed."""
        return importlib.util.find_spec('openvino') is not None

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """See :meth:`RuntimeDetector.run`."""
        found = self.compiled({INPUT: images})
        return [found[name] for name in OUTPUTS]
