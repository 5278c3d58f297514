"""Write a trained student as an ONNX file with preprocessing and NMS, checked in ONNX Runtime."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from mmengine.structures import InstanceData

from ..analysis.complexity import build_test_data, processor_name, time_in_turns
from ..building import build_detector
from ..checkpoints import first_line, load_weights, read_checkpoint, sha256_of
from ..errors import ConfigError, UserError
from ..f1_metric import evaluate
from ..hooks.student_config import STUDENT_FILE, has_student
from ..preflight import PlannedRun, require
from ..teachers.config import config_classes
from ..teachers.config import load_config as load_teacher
from ..types import Detector
from ..version import __version__
from .agreement import PIXEL_TOLERANCE, RELATIVE_TOLERANCE, SCORE_TOLERANCE, Agreement, compare
from .check_images import Image, input_type, load_images, user_transforms
from .detection_graph import DetectionGraph
from .new_folder import check_new, new_folder
from .onnx_detector import OnnxDetector, OpenVinoDetector, instances
from .onnx_file import INPUT, OUTPUTS, OnnxFile, require_packages, write_onnx
from .publishing import plain_config

MODEL, DESCRIPTION = 'model.onnx', 'model.json'
MAP_TOLERANCE = 1e-3  # maximum difference of mAP, in 0..1
MB = 1e6


@dataclass(frozen=True)
class Timing:
    """Sizes of a detector and its median time per image; None for a runtime that cannot run it.

    Attributes:
        name: ``student`` or ``teacher``.
        mb: Size of the weights (``PyTorch``) and of the ONNX file (``ONNX``), MB of 10^6 bytes.
        ms: Milliseconds per image, by runtime.
        note: The reason for missing values.
    """

    name: str
    mb: dict[str, float | None]
    ms: dict[str, float | None]
    note: str = ''


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        folder: The folder with all files.
        file: Properties of the ONNX file, such as the image sizes that it accepts.
        agreement: Agreement of the boxes of ONNX Runtime and PyTorch.
        checked_on: Description of the images of that comparison.
        scores: mAP by runtime, in 0..1; empty without evaluation.
        rows: Sizes and times of the detectors.
    """

    folder: Path
    file: OnnxFile
    agreement: Agreement
    checked_on: str
    scores: dict[str, float]
    rows: list[Timing]


def export(
    config: Config,
    checkpoint: str,
    out: str | os.PathLike[str],
    images: Sequence[str] = (),
    size: tuple[int, int] | None = None,
    evaluated: bool = False,
    teacher: bool = False,
    rounds: int = 20,
) -> Exported:
    """Export the plain student of a checkpoint to ONNX.

    The folder gets ``model.onnx``, its description ``model.json``, and the student's config. It is written
    only if the boxes of ONNX Runtime agree with those of mmdet's ``predict``.

    Args:
        config: The config of the training run, with or without distillation.
        checkpoint: The checkpoint of the student, a file or a URL.
        out: The folder; it must be new or empty.
        images: Image files for the comparison. If empty, the first images of the test data, or random
            images without test data.
        size: Fixed height and width of images, px; None for any size.
        evaluated: Also compare mAP on the test data.
        teacher: Also time the teacher.
        rounds: Number of timed runs per runtime.

    Raises:
        ConfigError: The detector cannot be exported, or the boxes do not agree.
        MissingFileError, CheckpointError: The checkpoint does not exist or does not match the config.
    """
    require_packages()
    out = check_new(out)
    declared = _teacher(config) if teacher else None
    plain = plain_config(config)
    where = f'checkpoint {checkpoint}'
    content = read_checkpoint(str(checkpoint), where, 'name the file of a trained student')
    graph = _build_graph(plain, content, where, size)
    if evaluated:
        if size:
            raise ConfigError(
                '--evaluate: cannot be combined with --size, as test images have other sizes; remove one'
            )
        require(PlannedRun(plain, ('test',), path=''), only=('data files',))
    classes = (content.get('meta') or {}).get('dataset_meta', {}).get('classes')
    classes = list(classes or config_classes(plain) or ())
    loaded, source = load_images(plain, images, size)
    with torch.no_grad(), new_folder(out) as folder:
        path = folder / MODEL
        file = write_onnx(graph, path, size)
        session = OnnxDetector(path)
        agreement = _check_agreement(graph, session, loaded, file)
        scores = _evaluate(plain, graph.detector, session) if evaluated else {}
        rows = [_time('student', graph, path, loaded[0], rounds)]
        if declared:
            rows.append(_time_teacher(declared, loaded[0], size, rounds))
        plain.dump(str(folder / STUDENT_FILE))
        description = dict(
            model=MODEL,
            sha256=sha256_of(path),
            opset=file.opset,
            detector=type(graph.detector).__name__,
            config=STUDENT_FILE,
            checkpoint=os.path.basename(str(checkpoint)),
            classes=classes,
            input=describe_input(plain, graph, file),
            output=describe_output(graph),
            agreement=vars(agreement) | dict(checked_on=source),
            mAP=scores,
            latency=dict(
                processor=processor_name(),
                threads=torch.get_num_threads(),
                image=list(loaded[0]['inputs'].shape[1:]),
                ms={row.name: row.ms for row in rows},
                mb={row.name: row.mb for row in rows},
            ),
            versions=_versions(),
        )
        text = json.dumps(description, indent=2) + '\n'
        (folder / DESCRIPTION).write_text(text, encoding='utf-8')
    return Exported(out, file, agreement, source, scores, rows)


def _build_graph(
    config: Config, content: dict, where: str, size: tuple[int, int] | None
) -> DetectionGraph:
    detector = build_detector(config.model, 'model', config.get('default_scope') or 'mmdet')
    graph = DetectionGraph(detector, input_type(config))
    if size and any(side % graph.multiple for side in size):
        kind = type(detector).__name__
        raise ConfigError(f'--size: must be multiples of {graph.multiple} for {kind}, got {size}')
    load_weights(detector, content, where)
    return graph


def predict_boxes(detector: Detector, image: Image) -> InstanceData:
    """Boxes of mmdet's ``predict`` for an image of the test pipeline, in px of that image."""
    sample = image['data_samples'].clone()
    data = detector.data_preprocessor(dict(inputs=[image['inputs']], data_samples=[sample]))
    return detector.predict(data['inputs'], data['data_samples'], rescale=False)[0].pred_instances


def _check_agreement(
    graph: DetectionGraph, session: OnnxDetector, images: list[Image], file: OnnxFile
) -> Agreement:
    """Compare on each image; if the graph accepts them, also on a crop and on a batch of two images.

    Raises:
        ConfigError: The boxes do not agree.
    """
    pairs: list[tuple[InstanceData, InstanceData]] = []
    for image in images:
        pairs.append((predict_boxes(graph.detector, image), session.detect(image['inputs'])))
    first = images[0]['inputs']
    if not {'height', 'width'} & set(file.fixed):
        step = max(graph.multiple, 32)
        height, width = ((side * 3 // 4) // step * step for side in first.shape[1:])
        if height >= file.least['height'] and width >= file.least['width']:
            part = _with_inputs(images[0], first[:, :height, :width])
            pairs.append((predict_boxes(graph.detector, part), session.detect(part['inputs'])))
    if 'batch' not in file.fixed:
        both = [images[0], _with_inputs(images[0], first.flip(2))]
        together = torch.stack([each['inputs'].permute(1, 2, 0) for each in both]).numpy()
        for image, *found in zip(both, *session.run(together), strict=True):
            pairs.append((predict_boxes(graph.detector, image), instances(*found)))
    total = Agreement(0, 0, 0.0, 0.0)
    for index, (wanted, found) in enumerate(pairs):
        compared = compare(wanted, found, graph.limit(), graph.lowest_score())
        total += compared
        if compared.different:
            raise ConfigError(
                f'export: on image {index + 1} of {len(pairs)}, {compared.different} boxes of ONNX Runtime '
                f'and PyTorch do not match (same label, scores within {SCORE_TOLERANCE}, coordinates within '
                f'{RELATIVE_TOLERANCE} of their value or {PIXEL_TOLERANCE} px); nothing is written'
            )
    return total


def _with_inputs(image: Image, inputs: torch.Tensor) -> Image:
    sample = image['data_samples'].clone()
    sample.set_metainfo(dict(img_shape=tuple(inputs.shape[1:])))
    return dict(inputs=inputs.contiguous(), data_samples=sample)


def _evaluate(config: Config, detector: Detector, session: OnnxDetector) -> dict[str, float]:
    """mAP of PyTorch and ONNX Runtime on the test data.

    Raises:
        ConfigError: The mAPs differ by more than the tolerance.
    """
    with redirect_stdout(StringIO()):  # pycocotools prints its progress
        data = build_test_data(config)
    found = {}
    for name, model in {'PyTorch': detector, 'ONNX Runtime': session}.items():
        with redirect_stdout(StringIO()):
            scores = evaluate(model, data, config.test_evaluator)
        key = next((key for key in scores if key.endswith('mAP')), None)
        if key is None:
            raise ConfigError(
                f'--evaluate: test_evaluator must return mAP, got {", ".join(scores)}; use another metric'
            )
        found[name] = scores[key]
    if not abs(found['PyTorch'] - found['ONNX Runtime']) <= MAP_TOLERANCE:
        both = ', '.join(f'{name} {100 * value:.2f}' for name, value in found.items())
        raise ConfigError(
            f'export: mAP of the runtimes differs by more than {100 * MAP_TOLERANCE} ({both}); nothing is '
            f'written'
        )
    return found


def _time(name: str, graph: DetectionGraph, path: Path, image: Image, rounds: int) -> Timing:
    models: dict[str, Any] = {'PyTorch': graph.detector, 'ONNX Runtime': OnnxDetector(path)}
    note = ''
    batch = dict(inputs=[image['inputs']], data_samples=[image['data_samples']])
    if OpenVinoDetector.available():
        try:
            models['OpenVINO'] = OpenVinoDetector(path)
            models['OpenVINO'].test_step(batch)
        except Exception as error:  # OpenVINO is optional
            models.pop('OpenVINO', None)
            note = f'OpenVINO cannot run the {name}: {first_line(error)[:200]}'
    seconds = time_in_turns(list(models.values()), [batch] * len(models), rounds, warm_up=3)
    ms: dict[str, float | None] = {
        key: 1000 * value for key, value in zip(models, seconds, strict=True)
    }
    weights = sum(
        each.numel() * each.element_size() for each in graph.detector.state_dict().values()
    )
    return Timing(name, {'PyTorch': weights / MB, 'ONNX': path.stat().st_size / MB}, ms, note)


def _teacher(config: Config) -> dict:
    """The teacher of a distillation config.

    Raises:
        ConfigError: The config has no teacher, or the teacher lacks config or checkpoint.
    """
    given = (config.get('model') or {}).get('teacher') or {} if has_student(config) else {}
    if not given.get('config') or not given.get('checkpoint'):
        raise ConfigError(
            '--teacher: needs the config of a distillation with teacher.config and teacher.checkpoint; name '
            'another config, or remove --teacher'
        )
    return given


def _time_teacher(given: dict, image: Image, size: tuple[int, int] | None, rounds: int) -> Timing:
    """Time the teacher on the same image; only in PyTorch if it cannot be exported."""
    theirs = load_teacher(given['config'], 'teacher')
    where = f'teacher.checkpoint={given["checkpoint"]!r}'
    content = read_checkpoint(given['checkpoint'], where)
    try:
        graph = _build_graph(theirs, content, where, size)
        with TemporaryDirectory() as folder:
            path = Path(folder) / MODEL
            write_onnx(graph, path, size)
            return _time('teacher', graph, path, image, rounds)
    except UserError as error:
        scope = theirs.get('default_scope') or 'mmdet'
        detector = build_detector(theirs.model, 'teacher.config', scope).eval()
        load_weights(detector, content, where)
        batch = dict(inputs=[image['inputs']], data_samples=[image['data_samples']])
        (seconds,) = time_in_turns([detector], [batch], rounds, warm_up=3)
        weights = sum(each.numel() * each.element_size() for each in detector.state_dict().values())
        mb = {'PyTorch': weights / MB, 'ONNX': None}
        return Timing('teacher', mb, {'PyTorch': 1000 * seconds}, f'teacher: {error}')


def describe_input(config: Config, graph: DetectionGraph, file: OnnxFile) -> dict[str, Any]:
    """Description of the input, of the preprocessing inside the file, and of that left to the user."""
    settings = graph.detector.data_preprocessor
    normalized = settings._enable_normalize
    sizes = {
        axis: least if axis in file.fixed else dict(dynamic=True, least=least)
        for axis, least in file.least.items()
    }
    return dict(
        name=INPUT,
        dtype=str(graph.dtype).removeprefix('torch.'),
        layout='NHWC',
        channels='BGR',
        **sizes,
        multiple_of=graph.multiple,
        inside=dict(
            channels='RGB' if settings._channel_conversion else 'BGR',
            mean=settings.mean.flatten().tolist() if normalized else None,
            std=settings.std.flatten().tolist() if normalized else None,
            padded_to_multiple_of=settings.pad_size_divisor,
            pad_value=settings.pad_value,
        ),
        before=user_transforms(config),
    )


def describe_output(graph: DetectionGraph) -> dict[str, Any]:
    """Description of the output."""
    dets, labels, counts = OUTPUTS
    limit = graph.limit()
    return {
        dets: dict(
            shape=['batch', limit, 5],
            dtype='float32',
            content='x1, y1, x2, y2 in px of the input, score; highest first, then zeros',
        ),
        labels: dict(
            shape=['batch', limit],
            dtype='int64',
            content='index of classes; -1 in unused rows',
        ),
        counts: dict(shape=['batch'], dtype='int64', content='number of boxes'),
    }


def _versions() -> dict[str, str]:
    import onnx
    import onnxruntime

    return dict(
        mmkd=__version__,
        torch=torch.__version__,
        onnx=onnx.__version__,
        onnxruntime=onnxruntime.__version__,
    )
