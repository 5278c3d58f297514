"""MobileNetV2: from names of torchvision (torchvision/models/mobilenetv2.py) to names of MMDetection."""

from __future__ import annotations

from .format import Format, with_suffixes

BLOCKS = (1, 2, 3, 4, 3, 3, 1)  # per layer of MMDetection; Sandler et al. 2018, table 2
BATCH_NORM = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')


def _names() -> dict[str, str]:
    # (convolution, batch norm) in torchvision: module in MMDetection that contains both as conv and bn.
    pairs = {('features.0.0', 'features.0.1'): 'conv1', ('features.18.0', 'features.18.1'): 'conv2'}
    index = 1
    for layer, count in enumerate(BLOCKS, start=1):
        for block in range(count):
            old, new = f'features.{index}.conv', f'layer{layer}.{block}'
            # The first block has no expansion convolution.
            names = ['depthwise_conv'] if index == 1 else ['expand_conv', 'depthwise_conv']
            pairs |= {
                (f'{old}.{n}.0', f'{old}.{n}.1'): f'{new}.{name}' for n, name in enumerate(names)
            }
            # The last convolution has no activation, so torchvision keeps it outside of a Sequential.
            last = len(names)
            pairs[f'{old}.{last}', f'{old}.{last + 1}'] = f'{new}.linear_conv'
            index += 1
    convs = {conv: f'{new}.conv' for (conv, _), new in pairs.items()}
    norms = {norm: f'{new}.bn' for (_, norm), new in pairs.items()}
    return with_suffixes(convs, 'weight') | with_suffixes(norms, *BATCH_NORM)


TORCHVISION_MOBILENET_V2 = Format(
    names=_names(),
    optional=frozenset(name for name in _names() if name.endswith('num_batches_tracked')),
    dropped=r'classifier\..+',
)
