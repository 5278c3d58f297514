"""Every kind of detector as an ONNX file finds what mmdet's own predict finds."""

from __future__ import annotations

import pytest
import torch
from tiny_dense import single_stage
from tiny_exports import CONFIGS, predict, random_images, spread_detector
from tiny_models import cascade_rcnn, faster_rcnn, mask_rcnn
from torch import nn

from mmkd.building import build_random
from mmkd.deploy.agreement import compare
from mmkd.deploy.detection_graph import SUPPORTED, DetectionGraph
from mmkd.errors import ConfigError

# One of each way through mmdet's code; tracing symbols for sizes takes three times as long.
ANY_SIZE = ('FasterRCNN', 'RetinaNet', 'YOLOX', 'DETR', 'DINO')


def packages():
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name)


def check(graph, session, images):
    """The boxes of ONNX Runtime are those of mmdet, image by image."""
    from mmkd.deploy.onnx_detector import instances

    dets, labels, counts = session.run(images.numpy())
    limit = graph.limit()
    assert dets.shape == (len(images), limit, 5) and labels.shape == (len(images), limit)
    seen = 0
    for image, *found in zip(images, dets, labels, counts, strict=True):
        wanted = predict(graph.detector, image)
        count = int(found[2])
        assert not found[0][count:].any() and (found[1][count:] == -1).all()
        result = compare(wanted, instances(*found), limit, graph.lowest_score())
        assert result.different == 0
        seen += result.boxes
    assert seen


@pytest.mark.parametrize('kind', [kind for kind in CONFIGS if kind not in ANY_SIZE])
def test_a_fixed_size(kind, tmp_path):
    packages()
    from mmkd.deploy.onnx_detector import OnnxDetector
    from mmkd.deploy.onnx_file import write_onnx

    graph = DetectionGraph(spread_detector(kind))
    file = write_onnx(graph, tmp_path / 'model.onnx', (160, 192))
    assert file.least == dict(batch=1, height=160, width=192)
    assert file.fixed == ('batch', 'height', 'width')
    check(graph, OnnxDetector(tmp_path / 'model.onnx'), random_images(1, 160, 192))


@pytest.mark.parametrize('kind', ANY_SIZE)
def test_any_number_and_size_of_images(kind, tmp_path):
    packages()
    import onnx

    from mmkd.deploy.onnx_detector import OnnxDetector
    from mmkd.deploy.onnx_file import write_onnx

    graph = DetectionGraph(spread_detector(kind))
    file = write_onnx(graph, tmp_path / 'model.onnx')
    assert file.fixed == () and file.least['batch'] == 1 and file.least['height'] < 150
    session = OnnxDetector(tmp_path / 'model.onnx')
    for count, height, width in ((1, 320, 448), (2, 160, 224), (3, 201, 150)):
        check(graph, session, random_images(count, height, width, seed=height))
    # Axes have names, and nothing names a place on this machine.
    limit, model = graph.limit(), onnx.load(tmp_path / 'model.onnx').graph
    axes = [
        [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim]
        for value in (*model.input, *model.output)
    ]
    assert axes == [
        ['batch', 'height', 'width', 3],
        ['batch', limit, 5],
        ['batch', limit],
        ['batch'],
    ]
    assert b'.py' not in (tmp_path / 'model.onnx').read_bytes()


def test_the_table_has_the_kinds_that_are_tested():
    assert set(SUPPORTED) == set(CONFIGS)


@pytest.mark.parametrize(
    ('model', 'says'),
    [
        (lambda: mask_rcnn(), 'MaskRCNN cannot be exported; supported: FasterRCNN, RetinaNet'),
        (lambda: cascade_rcnn(), 'CascadeRCNN cannot be exported'),
        (lambda: single_stage('PAA'), 'PAA cannot be exported'),
        (
            lambda: single_stage('RetinaNet', test_cfg=dict(nms=dict(type='soft_nms'))),
            "test_cfg.nms: soft_nms has no ONNX operator; set type='nms'",
        ),
        (
            lambda: single_stage('ATSS', type='RetinaNet'),
            'the ATSSHead of a RetinaNet cannot be exported; it must be a RetinaHead',
        ),
        (
            lambda: faster_rcnn(
                depth=50,
                neck=dict(in_channels=[32, 64, 128, 256]),
                backbone=dict(
                    dcn=dict(type='DCNv2', deform_groups=1),
                    stage_with_dcn=(False, False, False, True),
                ),
            ),
            'ModulatedDeformConv2dPack of module backbone.layer4.0.conv2 has no ONNX operator',
        ),
    ],
)
def test_what_cannot_be_exported_is_named(model, says):
    detector = build_random(model(), 'model')
    with pytest.raises(ConfigError) as error:
        DetectionGraph(detector)
    assert says in str(error.value)


class Bessel(nn.Module):
    """Something that ONNX has no operator for."""

    def forward(self, value):
        return torch.special.bessel_j0(value)


def test_an_operator_that_onnx_lacks_is_named_with_its_module(tmp_path):
    packages()
    from mmkd.deploy.onnx_file import write_onnx

    detector = spread_detector('YOLOX')
    detector.neck.out_convs[1].activate = Bessel()
    with pytest.raises(ConfigError) as error:
        write_onnx(DetectionGraph(detector), tmp_path / 'model.onnx', (64, 96))
    said = str(error.value)
    path = 'neck.out_convs.1.activate'
    assert f'aten.special_bessel_j0.default of module {path} has no ONNX operator' in said
    assert not (tmp_path / 'model.onnx').exists()
