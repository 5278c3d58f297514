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
# Shape of the images for tracing a graph of any size. They are large enough that the last pyramid level has
# several positions. They are not square, as the tracer would assume that height and width are always equal.
TRACED_SHAPE = (2, 320, 448, 3)
NO_ONNX_FUNCTION = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")


@dataclass(frozen=True)
class OnnxFile:
    """Properties of an ONNX file.

    Attributes:
        opset: Version of the ONNX operators.
        least: Minimum batch size, height and width that the tracer allows.
        fixed: Names of the axes that must have exactly the size in ``least``.
    """

    opset: int
    least: dict[str, int]
    fixed: tuple[str, ...]


def require_packages() -> None:
    """Check that the optional packages are installed.

    Raises:
        ConfigError: A package is missing, with the command that installs it, or torch is too old.
    """
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigError(
            f'export: needs {", ".join(absent)}; install with `pip install {" ".join(PACKAGES)}`'
        )
    if not hasattr(torch.library, 'register_vmap') or not hasattr(torch.export.Dim, 'AUTO'):
        raise ConfigError(
            f'export: needs torch 2.6 or later, got {torch.__version__}; update torch'
        )


def write_onnx(graph: DetectionGraph, path: Path, size: tuple[int, int] | None = None) -> OnnxFile:
    """Write a graph for batches of images of any size, or for one image of a fixed size.

    Args:
        graph: The detector, on the CPU.
        path: The file to write.
        size: Fixed height and width, px; None for any batch and image size.

    Raises:
        ConfigError: The detector has an operator that ONNX lacks, or cannot be traced.
    """
    import onnx

    images = torch.zeros((1, *size, 3) if size else TRACED_SHAPE, dtype=graph.dtype)
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
            raise _unsupported_operator_error(error, program) from error
        model = found.model_proto
    _rename_axes(model)
    # The exporter stores source lines and local paths in each node; remove them.
    for node in (*model.graph.node, *model.graph.input, *model.graph.value_info):
        node.ClearField('metadata_props')
    del model.metadata_props[:]
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return OnnxFile(model.opset_import[0].version, *_sizes(program))


def _trace(graph: DetectionGraph, images: torch.Tensor, fixed: bool) -> ExportedProgram:
    options: dict[str, Any] = {}
    if not fixed:
        # The tracer's assumptions hold for all but the smallest images; the graph does not check them.
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
            f'export: torch.export cannot trace this {kind}: {first_line(error)[:300]}'
        ) from error
    # Remove type assertions, as the exporter cannot run them with symbolic sizes.
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


def _unsupported_operator_error(error: BaseException, program: ExportedProgram) -> ConfigError:
    """Convert an exception of the exporter to one line with the operator and the module that calls it."""
    cause: BaseException | None = error
    while cause is not None:
        found = NO_ONNX_FUNCTION.search(str(cause))
        if found:
            name, path = _calling_module(program, found[1])
            return ConfigError(
                f'export: {name} of module {path} has no ONNX operator; train a student without it'
            )
        cause = cause.__cause__ or cause.__context__
    return ConfigError(f'export: torch.onnx.export failed: {first_line(error)[:300]}')


def _calling_module(program: ExportedProgram, operator: str) -> tuple[str, str]:
    """The name of an operator in the traced program, and the innermost module that calls it.

    Args:
        program: The traced program.
        operator: Name of the operator, or of its decomposition by the exporter, which contains that name.
    """
    part = operator.rpartition('.')[2]
    for node in program.graph.nodes:
        if part in str(node.target) and node.meta.get('nn_module_stack'):
            path = list(node.meta['nn_module_stack'].values())[-1][0]
            return str(node.target), path.removeprefix('detector.')
    return operator, 'unknown'


def _rename_axes(model: Any) -> None:
    """Replace the tracer's symbols for input sizes by the names of :data:`AXES`, in the whole graph."""
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
    """Minimum batch size, height and width, and the names of the fixed axes."""
    (name,) = program.graph_signature.user_inputs
    (node,) = (each for each in program.graph.nodes if each.name == name)
    sizes = dict(zip(AXES, node.meta['val'].shape[:3], strict=True))
    fixed = tuple(axis for axis, side in sizes.items() if isinstance(side, int))
    least = {
        axis: side if axis in fixed else int(program.range_constraints[side.node.expr].lower)
        for axis, side in sizes.items()
    }
    if 'batch' not in fixed:
        least['batch'] = 1  # the tracer assumes sizes above 1; the comparison covers a single image
    return least, fixed


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's log about missing operators and its progress."""
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
