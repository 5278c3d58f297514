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
from .agreement import PIXELS, RELATIVE, SCORE, Agreement, compare
from .check_images import Image, input_type, load_images, steps_before
from .detection_graph import DetectionGraph
from .new_folder import check_new, new_folder
from .onnx_detector import OnnxDetector, OpenVinoDetector, instances
from .onnx_file import INPUT, OUTPUTS, OnnxFile, require_packages, write_onnx
from .publishing import plain_config

MODEL, DESCRIPTION = 'model.onnx', 'model.json'
MAP = 1e-3  # largest difference of mAP, in 0..1
MB = 1e6


@dataclass(frozen=True)
class Timed:
    """A detector's size and median time per image; None where it does not run.

    Attributes:
        name: ``student`` or ``teacher``.
        mb: Of weights and of the ONNX file, MB of 10^6 bytes.
        ms: By the name of the runtime.
        note: Why something is missing.
    """

    name: str
    mb: dict[str, float | None]
    ms: dict[str, float | None]
    note: str = ''


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: Where it is.
        file: Which sizes of images it takes.
        agreement: Of ONNX Runtime with PyTorch.
        checked_on: On which images.
        scores: mAP by runtime, in 0..1, if it was evaluated.
        rows: Sizes and times.
    """

    folder: Path
    file: OnnxFile
    agreement: Agreement
    checked_on: str
    scores: dict[str, float]
    rows: list[Timed]


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
    """Write the plain student of a checkpoint for runtimes of ONNX.

    The folder has ``model.onnx``, ``model.json`` that describes it, and the student's config. It is written
    only if ONNX Runtime finds what mmdet's ``predict`` finds.

    Args:
        config: The config that it was trained with, of a distillation or a plain detector.
        checkpoint: Its checkpoint, a file or a URL.
        out: The folder; it must be new or empty.
        images: Image files to compare on; without them the first of the test data, else random ones.
        size: A fixed height and width of images, px; without it any size.
        evaluated: Whether mAP is compared on the test data too.
        teacher: Whether the teacher is timed too.
        rounds: How often each is timed.

    Raises:
        ConfigError: The detector cannot be exported, or the two do not find the same.
        MissingFileError, CheckpointError: The checkpoint is not there, or does not belong to the config.
    """
    require_packages()
    out = check_new(out)
    declared = _teacher(config) if teacher else None
    plain = plain_config(config)
    where = f'checkpoint {checkpoint}'
    content = read_checkpoint(str(checkpoint), where, 'name the file of a trained student')
    graph = _graph(plain, content, where, size)
    if evaluated:
        if size:
            raise ConfigError('--evaluate: test images have other sizes than --size; leave one out')
        require(PlannedRun(plain, ('test',), path=''), only=('data files',))
    classes = (content.get('meta') or {}).get('dataset_meta', {}).get('classes')
    classes = list(classes or config_classes(plain) or ())
    loaded, source = load_images(plain, images, size)
    with torch.no_grad(), new_folder(out) as folder:
        path = folder / MODEL
        file = write_onnx(graph, path, size)
        session = OnnxDetector(path)
        agreement = _compare(graph, session, loaded, file)
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


def _graph(
    config: Config, content: dict, where: str, size: tuple[int, int] | None
) -> DetectionGraph:
    detector = build_detector(config.model, 'model', config.get('default_scope') or 'mmdet')
    graph = DetectionGraph(detector, input_type(config))
    if size and any(side % graph.multiple for side in size):
        kind = type(detector).__name__
        raise ConfigError(f'--size: must be multiples of {graph.multiple} for {kind}, got {size}')
    load_weights(detector, content, where)
    return graph


def find(detector: Detector, image: Image) -> InstanceData:
    """What mmdet's ``predict`` finds in an image of the test pipeline, in px of that image."""
    sample = image['data_samples'].clone()
    data = detector.data_preprocessor(dict(inputs=[image['inputs']], data_samples=[sample]))
    return detector.predict(data['inputs'], data['data_samples'], rescale=False)[0].pred_instances


def _compare(
    graph: DetectionGraph, session: OnnxDetector, images: list[Image], file: OnnxFile
) -> Agreement:
    """Compare on each image; if the graph allows, also on a part of the first, and two images at once.

    Raises:
        ConfigError: They do not find the same.
    """
    pairs: list[tuple[InstanceData, InstanceData]] = []
    for image in images:
        pairs.append((find(graph.detector, image), session.find(image['inputs'])))
    first = images[0]['inputs']
    if not {'height', 'width'} & set(file.fixed):
        step = max(graph.multiple, 32)
        height, width = ((side * 3 // 4) // step * step for side in first.shape[1:])
        if height >= file.least['height'] and width >= file.least['width']:
            part = _part(images[0], first[:, :height, :width])
            pairs.append((find(graph.detector, part), session.find(part['inputs'])))
    if 'batch' not in file.fixed:
        both = [images[0], _part(images[0], first.flip(2))]
        together = torch.stack([each['inputs'].permute(1, 2, 0) for each in both]).numpy()
        for image, *found in zip(both, *session.run(together), strict=True):
            pairs.append((find(graph.detector, image), instances(*found)))
    total = Agreement(0, 0, 0.0, 0.0)
    for index, (wanted, found) in enumerate(pairs):
        compared = compare(wanted, found, graph.limit(), graph.lowest_score())
        total += compared
        if compared.different:
            raise ConfigError(
                f'export: on image {index + 1} of {len(pairs)}, {compared.different} boxes of ONNX Runtime '
                f'and PyTorch have no counterpart (of the same label, scores within {SCORE}, coordinates '
                f'within {RELATIVE} of their value or {PIXELS} px); nothing is written'
            )
    return total


def _part(image: Image, inputs: torch.Tensor) -> Image:
    sample = image['data_samples'].clone()
    sample.set_metainfo(dict(img_shape=tuple(inputs.shape[1:])))
    return dict(inputs=inputs.contiguous(), data_samples=sample)


def _evaluate(config: Config, detector: Detector, session: OnnxDetector) -> dict[str, float]:
    """mAP of both on the test data.

    Raises:
        ConfigError: They differ.
    """
    with redirect_stdout(StringIO()):  # pycocotools tells what it reads
        data = build_test_data(config)
    found = {}
    for name, model in {'PyTorch': detector, 'ONNX Runtime': session}.items():
        with redirect_stdout(StringIO()):
            scores = evaluate(model, data, config.test_evaluator)
        key = next((key for key in scores if key.endswith('mAP')), None)
        if key is None:
            raise ConfigError(f'--evaluate: the evaluator has no mAP, got {", ".join(scores)}')
        found[name] = scores[key]
    if not abs(found['PyTorch'] - found['ONNX Runtime']) <= MAP:
        both = ', '.join(f'{name} {100 * value:.2f}' for name, value in found.items())
        raise ConfigError(
            f'export: mAP differs by more than {100 * MAP} ({both}); nothing is written'
        )
    return found


def _time(name: str, graph: DetectionGraph, path: Path, image: Image, rounds: int) -> Timed:
    models: dict[str, Any] = {'PyTorch': graph.detector, 'ONNX Runtime': OnnxDetector(path)}
    note = ''
    batch = dict(inputs=[image['inputs']], data_samples=[image['data_samples']])
    if OpenVinoDetector.available():
        try:
            models['OpenVINO'] = OpenVinoDetector(path)
            models['OpenVINO'].test_step(batch)
        except Exception as error:  # of a runtime that is not needed
            models.pop('OpenVINO', None)
            note = f'OpenVINO does not run the {name}: {first_line(error)[:200]}'
    seconds = time_in_turns(list(models.values()), [batch] * len(models), rounds, warm_up=3)
    ms: dict[str, float | None] = {
        key: 1000 * value for key, value in zip(models, seconds, strict=True)
    }
    weights = sum(
        each.numel() * each.element_size() for each in graph.detector.state_dict().values()
    )
    return Timed(name, {'PyTorch': weights / MB, 'ONNX': path.stat().st_size / MB}, ms, note)


def _teacher(config: Config) -> dict:
    """The teacher that a distillation declares.

    Raises:
        ConfigError: The config has none, or not its config and checkpoint.
    """
    given = (config.get('model') or {}).get('teacher') or {} if has_student(config) else {}
    if not given.get('config') or not given.get('checkpoint'):
        raise ConfigError(
            '--teacher: the config must be that of a distillation whose teacher has config and checkpoint'
        )
    return given


def _time_teacher(given: dict, image: Image, size: tuple[int, int] | None, rounds: int) -> Timed:
    """The teacher on the same image; in PyTorch alone if it cannot be exported."""
    theirs = load_teacher(given['config'], 'teacher')
    where = f'teacher.checkpoint={given["checkpoint"]!r}'
    content = read_checkpoint(given['checkpoint'], where)
    try:
        graph = _graph(theirs, content, where, size)
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
        return Timed('teacher', mb, {'PyTorch': 1000 * seconds}, f'teacher: {error}')


def describe_input(config: Config, graph: DetectionGraph, file: OnnxFile) -> dict[str, Any]:
    """What the file takes, what it does with it, and what is left to its user."""
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
        before=steps_before(config),
    )


def describe_output(graph: DetectionGraph) -> dict[str, Any]:
    """What the file gives."""
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
            content='index of classes; -1 where there is no box',
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
