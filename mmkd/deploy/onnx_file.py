"""Write a detection graph as an ONNX file."""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from ..checkpoints import first_line
from ..errors import ConfigError
from .detection_graph import DetectionGraph
from .onnx_operators import translations

PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
INPUT, OUTPUTS = 'images', ('dets', 'labels', 'num_dets')
AXES = ('batch', 'height', 'width')
# Of the images that a graph for any size is traced with: large enough for the last map of a pyramid to have
# several positions, and not square, since what is equal here would be taken to be equal always.
TRACED = (2, 320, 448, 3)
UNKNOWN = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")


@dataclass(frozen=True)
class OnnxFile:
    """What was written.

    Attributes:
        opset: Version of ONNX's operators.
        least: Of images, height and width, the smallest that the tracer found to hold.
        fixed: Those of them that can only be as in ``least``.
    """

    opset: int
    least: dict[str, int]
    fixed: tuple[str, ...]


def require_packages() -> None:
    """Check that the optional packages are there.

    Raises:
        ConfigError: The first that is not, with the command that installs them.
    """
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigError(
            f'export: needs {", ".join(absent)}; install with `pip install {" ".join(PACKAGES)}`'
        )
    if not hasattr(torch.library, 'register_vmap') or not hasattr(torch.export.Dim, 'AUTO'):
        raise ConfigError(f'export: needs torch 2.6 or later, got {torch.__version__}')


def write_onnx(graph: DetectionGraph, path: Path, size: tuple[int, int] | None = None) -> OnnxFile:
    """Write a graph for images of any number and size, or for one image of a fixed size.

    Args:
        graph: The detector, on the CPU.
        path: The file.
        size: The fixed height and width, px.

    Raises:
        ConfigError: The detector has an operator that ONNX has not.
    """
    import onnx

    images = torch.zeros((1, *size, 3) if size else TRACED, dtype=graph.dtype)
    with torch.no_grad(), _quiet():
        program = _trace(graph, images, fixed=size is not None)
        try:
            found: Any = torch.onnx.export(
                program,
                (images,),
                dynamo=True,
                custom_translation_table=translations(),
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                verbose=False,
            )
        except Exception as error:
            raise _refusal(error, program) from error
        model = found.model_proto
    _rename_axes(model)
    # Without what the exporter notes of each node: lines of code and paths on this machine.
    for node in (*model.graph.node, *model.graph.input, *model.graph.value_info):
        node.ClearField('metadata_props')
    del model.metadata_props[:]
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return OnnxFile(model.opset_import[0].version, *_sizes(program))


def _trace(graph: DetectionGraph, images: torch.Tensor, fixed: bool) -> ExportedProgram:
    options: dict[str, Any] = {}
    if not fixed:
        # What the tracer finds to hold for all but the smallest images is not checked by the graph.
        options = dict(
            dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO, 2: Dim.AUTO},),
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    try:
        program = torch.export.export(graph, (images,), strict=False, **options)
    except ConfigError:
        raise
    except Exception as error:
        kind = type(graph.detector).__name__
        raise ConfigError(
            f'export: torch.export cannot follow this {kind}: {first_line(error)[:300]}'
        ) from error
    # Checks of types, which the exporter cannot run where sizes are symbols.
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


def _refusal(error: BaseException, program: ExportedProgram) -> ConfigError:
    """An exporter's exception in one line, with the operator and the module that calls it."""
    cause: BaseException | None = error
    while cause is not None:
        found = UNKNOWN.search(str(cause))
        if found:
            name, path = _call(program, found[1])
            return ConfigError(
                f'export: {name} of module {path} has no ONNX operator; train a student without it'
            )
        cause = cause.__cause__ or cause.__context__
    return ConfigError(f'export: torch.onnx.export failed: {first_line(error)[:300]}')


def _call(program: ExportedProgram, operator: str) -> tuple[str, str]:
    """An operator as the detector calls it, and the innermost module that does.

    Args:
        program: What was traced.
        operator: The operator or what the exporter took it apart to, which has part of its name.
    """
    part = operator.rpartition('.')[2]
    for node in program.graph.nodes:
        if part in str(node.target) and node.meta.get('nn_module_stack'):
            path = list(node.meta['nn_module_stack'].values())[-1][0]
            return str(node.target), path.removeprefix('detector.')
    return operator, 'unknown'


def _rename_axes(model: Any) -> None:
    """Names for the sizes of the input, wherever they occur, in place of the tracer's symbols."""
    shape = model.graph.input[0].type.tensor_type.shape
    names = {
        each.dim_param: name
        for each, name in zip(shape.dim[:3], AXES, strict=True)
        if each.dim_param
    }
    if not names:
        return
    symbol = re.compile(rf'\b({"|".join(map(re.escape, names))})\b')
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for each in value.type.tensor_type.shape.dim:
            if each.dim_param:
                each.dim_param = symbol.sub(lambda found: names[found[1]], each.dim_param)


def _sizes(program: ExportedProgram) -> tuple[dict[str, int], tuple[str, ...]]:
    """The least of batch, height and width, and which of them are fixed."""
    (name,) = program.graph_signature.user_inputs
    (node,) = (each for each in program.graph.nodes if each.name == name)
    sizes = dict(zip(AXES, node.meta['val'].shape[:3], strict=True))
    fixed = tuple(axis for axis, side in sizes.items() if isinstance(side, int))
    least = {
        axis: side if axis in fixed else int(program.range_constraints[side.node.expr].lower)
        for axis, side in sizes.items()
    }
    if 'batch' not in fixed:
        least['batch'] = 1  # the tracer takes no size to be 1; one image is compared afterwards
    return least, fixed


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter logs of operators that are not there, and of its own progress."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'onnxscript', 'onnx_ir')]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)
