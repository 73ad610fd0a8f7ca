"""The networks of the experiments, built by name. Any other module works with the optimizers as well.

Each takes images as flat rows, (B, inputs), and gives logits, (B, outputs). Three planes of a square make a colour
image for the convolutional ones.
"""

from itertools import pairwise
from math import gcd, isqrt

import torch
from torch import Tensor, nn

from sp.lab import pretrained

GROUPS = 8  # of channels, each normalised by itself


def mlp(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Sequential:
    """A multilayer perceptron with ReLU and these hidden widths."""
    widths = (inputs, *hidden)
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


def mlp_size(inputs: int, hidden: tuple[int, ...], outputs: int) -> int:
    """How many weights and biases `mlp` has."""
    return sum((width + 1) * following for width, following in pairwise((inputs, *hidden, outputs)))


def convolutional(inputs: int, hidden: tuple[int, int, int], outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions of stride 2 with ``hidden[0]`` and ``hidden[1]`` channels, then a layer of ``hidden[2]``."""
    if len(hidden) != 3:
        raise ValueError(
            f"hidden must be three widths for a convolutional network, two of channels and one of units, such as "
            f"(16, 32, 100); got {hidden}"
        )
    return _convolutions(inputs, hidden, outputs, normalised=False)


def normalised(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Sequential:
    """3x3 convolutions of stride 2 with ``hidden[:-1]`` channels, each normalised, then a layer of ``hidden[-1]``.

    The normalisation is that of groups of channels (Wu & He 2018), without weights of its own: a convolution and the
    layer after it have enough, and methods that protect matrices only can train all that there is.
    """
    if len(hidden) < 2:
        raise ValueError(
            f"hidden must be two widths or more for a normalised network, of channels and last of units, such as "
            f"(32, 64, 128); got {hidden}"
        )
    return _convolutions(inputs, hidden, outputs, normalised=True)


def _convolutions(inputs: int, hidden: tuple[int, ...], outputs: int, normalised: bool) -> nn.Sequential:
    *channels, dense = hidden
    colours = 3 if inputs % 3 == 0 and isqrt(inputs // 3) ** 2 == inputs // 3 else 1
    side = _side(inputs // colours)
    layers: list[nn.Module] = [nn.Unflatten(1, (colours, side, side))]
    for width, following in pairwise((colours, *channels)):
        layers.append(nn.Conv2d(width, following, 3, stride=2, padding=1))
        if normalised:
            layers.append(nn.GroupNorm(gcd(GROUPS, following), following, affine=False))
        layers.append(nn.ReLU())
        side = -(-side // 2)
    layers += [nn.Flatten(), nn.Linear(channels[-1] * side**2, dense), nn.ReLU(), nn.Linear(dense, outputs)]
    return nn.Sequential(*layers)


def _side(inputs: int) -> int:
    """Of the square image that so many pixels make."""
    if isqrt(inputs) ** 2 != inputs:
        raise ValueError(f"inputs must be the pixels of a square image, such as 784, got {inputs}")
    return isqrt(inputs)


class ResidualNetwork(nn.Module):
    """A layer of width ``hidden[0]``, then ``len(hidden)`` blocks of two layers around a residual connection."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], outputs: int):
        super().__init__()
        width = hidden[0]
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in hidden
        )
        self.readout = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.readout(x)


class AttentionBlock(nn.Module):
    """Self-attention with one head, and a layer on each token, both around a residual connection: (B, T, d) -> same."""

    def __init__(self, width: int):
        super().__init__()
        self.before_attention, self.before_dense = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mix = nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.before_attention(x)
        attended = nn.functional.scaled_dot_product_attention(self.query(tokens), self.key(tokens), self.value(tokens))
        x = x + self.mix(attended)
        return x + self.dense(self.before_dense(x))


class Transformer(nn.Module):
    """Rows of a square image as tokens of width ``hidden[0]``, ``len(hidden)`` attention blocks, and their mean."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], outputs: int):
        super().__init__()
        self.side, width = _side(inputs), hidden[0]
        self.embed = nn.Linear(self.side, width)
        self.place = nn.Parameter(torch.randn(self.side, width) * 0.1)
        self.blocks = nn.Sequential(*(AttentionBlock(width) for _ in hidden))
        self.readout = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.reshape(len(x), self.side, self.side)) + self.place
        return self.readout(self.blocks(tokens).mean(1))


MODELS = {
    "attention": Transformer,
    "convolutional": convolutional,
    "last_block": pretrained.last_block,
    "mlp": mlp,
    "normalised": normalised,
    "residual": ResidualNetwork,
}
