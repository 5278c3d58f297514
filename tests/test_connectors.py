"""mmkd/connectors.py."""

from __future__ import annotations

import pytest
import torch

from mmkd.connectors import (
    ConvConnector,
    GlobalContextConnector,
    LinearConnector,
    MaskedGenerationConnector,
    StandardizeConnector,
)
from mmkd.errors import ConfigError


def test_levels_share_one_convolution_or_have_their_own():
    levels = [torch.randn(2, 4, size, size) for size in (8, 4)]
    shared = ConvConnector(4, 6)
    assert len(shared.convs) == 1
    assert [out.shape for out in shared(levels)] == [(2, 6, 8, 8), (2, 6, 4, 4)]
    assert shared(levels[0]).shape == (2, 6, 8, 8)
    own = ConvConnector([4, 5], 6)
    outs = own([levels[0], torch.randn(2, 5, 4, 4)])
    assert [out.shape[1] for out in outs] == [6, 6]
    assert [conv.out_channels for conv in ConvConnector(4, [6, 7, 8]).convs] == [6, 7, 8]


def test_what_does_not_fit_says_why():
    with pytest.raises(
        ConfigError, match=r'in_channels must be 3 for level 0 of shape \(1, 3, 2, 2\), got 4'
    ):
        ConvConnector(4, 6)(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ConfigError, match='must have 2 levels, got 1'):
        ConvConnector([4, 4], 6)([torch.zeros(1, 4, 2, 2)])
    with pytest.raises(ConfigError, match='same number of levels, got 2 and 3'):
        ConvConnector([4, 4], [6, 6, 6])


def test_tokens_and_embeddings_are_brought_to_the_teachers_width():
    linear = LinearConnector(4, 6)
    assert linear(torch.randn(2, 10, 4)).shape == (2, 10, 6)
    assert linear(torch.randn(3, 2, 10, 4)).shape == (3, 2, 10, 6)
    with pytest.raises(ConfigError, match=r'one tensor with 4 channels last, got \(2, 10, 5\)'):
        linear(torch.randn(2, 10, 5))
    with pytest.raises(ConfigError, match='got tuple'):
        linear((torch.randn(2, 10, 4), None))


def test_masked_places_are_generated_from_those_around_them():
    connector = MaskedGenerationConnector(4, 6, mask_ratio=0.5)
    seen = []
    connector.generation[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    levels = [torch.ones(2, 4, 16, 16), torch.ones(2, 4, 8, 8)]
    assert [out.shape for out in connector(levels)] == [(2, 6, 16, 16), (2, 6, 8, 8)]
    masked = (seen[0] == 0).all(1)
    assert 0.35 < masked.float().mean() < 0.65  # whole places, not single channels
    assert torch.equal(masked, (seen[0] == 0).any(1))
    assert not torch.equal(masked[0], masked[1])
    none = MaskedGenerationConnector(4, 4, mask_ratio=0.0)
    assert not any(name.startswith('align') for name, _ in none.named_parameters())
    level = torch.randn(2, 4, 8, 8)
    assert torch.equal(none(level), none.generation[0](level))


def test_levels_share_the_generation_or_have_their_own():
    own = MaskedGenerationConnector(4, 6, levels=2)
    assert len(own.generation) == 2
    with pytest.raises(ConfigError, match='levels must be 1, as recorded, got 2'):
        own(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ConfigError, match='must be a map with 4 channels'):
        own([torch.zeros(1, 3, 2, 2)] * 2)
    with pytest.raises(ConfigError, match='mask_ratio must be in .*, got 1'):
        MaskedGenerationConnector(4, 6, mask_ratio=1)


def test_a_global_context_is_the_same_for_every_place():
    connector = GlobalContextConnector(4)
    level = torch.randn(2, 4, 6, 8)
    assert torch.equal(connector(level), level)  # so it starts
    torch.nn.init.normal_(connector.transform[0][-1].weight)
    added = connector(level) - level
    assert torch.allclose(added, added[:, :, :1, :1].expand_as(added), atol=1e-5)
    assert added[0].abs().max() > 0 and not torch.allclose(added[0], added[1])
    # Where a place gets all the attention, the context is what is there.
    loud = level.clone()
    torch.nn.init.constant_(connector.attention[0].weight, 50.0)
    loud[:, :, 2, 3] += 5.0
    alone = connector.transform[0](loud[:, :, 2:3, 3:4])
    assert torch.allclose(connector(loud) - loud, alone.expand_as(loud), atol=1e-4)


def test_levels_have_a_context_of_their_own_or_share_it():
    levels = [torch.randn(2, 4, 8, 8), torch.randn(2, 4, 4, 4)]
    own = GlobalContextConnector(4, levels=2)
    assert len(own.transform) == 2
    assert [out.shape for out in own(levels)] == [level.shape for level in levels]
    assert [out.shape for out in GlobalContextConnector(4)(levels)] == [x.shape for x in levels]
    with pytest.raises(ConfigError, match='levels must be 1, as recorded, got 2'):
        own(levels[0])
    with pytest.raises(ConfigError, match='must be a map with 5 channels'):
        GlobalContextConnector(5)(levels)
    with pytest.raises(ConfigError, match='ratio must be between 1 and channels=.*, got 8'):
        GlobalContextConnector(4, ratio=8)


def test_maps_are_standardised_over_the_batch():
    levels = [torch.randn(3, 4, 6, 8) * 5 + 2, torch.randn(3, 4, 3, 4)]
    connector = StandardizeConnector()
    assert not list(connector.parameters()) and not list(connector.buffers())
    for out, level in zip(connector(levels), levels, strict=True):
        assert torch.allclose(out.mean((0, 2, 3)), torch.zeros(4), atol=1e-5)
        assert torch.allclose(out.var((0, 2, 3), correction=0), torch.ones(4), atol=1e-3)
        assert torch.allclose(out, connector(level * 7 - 1), atol=1e-3)
    convolved = ConvConnector(4, 6, bias=False, standardize=True)
    assert [name for name, _ in convolved.named_parameters()] == ['convs.0.weight']
    assert torch.allclose(convolved(levels)[0].mean((0, 2, 3)), torch.zeros(6), atol=1e-5)
    connector.eval()  # what training sees is also what validation would see
    assert torch.allclose(connector(levels[0]).mean((0, 2, 3)), torch.zeros(4), atol=1e-5)
