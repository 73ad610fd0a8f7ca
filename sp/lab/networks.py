"""The networks of the experiments, built by name. The optimizers work with any other module as well.

Each network takes flattened images, (B, inputs), and returns logits, (B, outputs). The convolutional ones treat three
square planes as a colour image.
"""

from itertools import pairwise
from math import gcd, isqrt

import torch
from torch import Tensor, nn

from sp.lab import pretrained

HEADS = 4  # attention heads
GROUPS = 8  # groups of channels, each normalised separately


def mlp(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Sequential:
    """A multilayer perceptron with ReLU activations and the given hidden widths."""
    widths = (inputs, *hidden)
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


def mlp_size(inputs: int, hidden: tuple[int, ...], outputs: int) -> int:
    """Number of weights and biases in `mlp`."""
    return sum((width + 1) * following for width, following in pairwise((inputs, *hidden, outputs)))


def convolutional(inputs: int, hidden: tuple[int, int, int], outputs: int) -> nn.Sequential:
    """Two stride-2 3x3 convolutions with ``hidden[0]`` and ``hidden[1]`` channels, then ``hidden[2]`` dense units."""
    if len(hidden) != 3:
        raise ValueError(
            f"hidden must be three widths for a convolutional network, two of channels and one of units, such as "
            f"(16, 32, 100); got {hidden}"
        )
    return _convolutions(inputs, hidden, outputs, normalised=False)


def normalised(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Stride-2 3x3 convolutions with ``hidden[:-1]`` channels, each normalised, then ``hidden[-1]`` dense units.

    Uses group normalisation (Wu & He 2018) without weights of its own: those of a convolution and of the layer after it
    suffice, and methods that protect only matrices can then train all weights.
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
    """Side of a square image with this many pixels."""
    if isqrt(inputs) ** 2 != inputs:
        raise ValueError(f"inputs must be the pixels of a square image, such as 784, got {inputs}")
    return isqrt(inputs)


class ResidualNetwork(nn.Module):
    """A layer of width ``hidden[0]``, then ``len(hidden)`` residual blocks of two layers each."""

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


class Recurrent(nn.Module):
    """A GRU of width ``hidden[0]`` reads a square image row by row; the readout takes its last state."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], outputs: int):
        super().__init__()
        if len(hidden) != 1:
            raise ValueError(f"hidden must be one width for a recurrent network, such as (64,), got {hidden}")
        side = _side(inputs)
        self.rows = nn.Unflatten(1, (side, side))
        self.gru = nn.GRU(side, hidden[0], batch_first=True)
        self.readout = nn.Linear(hidden[0], outputs)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(self.rows(x))
        return self.readout(states[:, -1])


def transformer_block(width: int) -> nn.TransformerEncoderLayer:
    """Self-attention with `HEADS` heads, then a pair of dense layers, both residual: (B, T, d) -> (B, T, d)."""
    if width % HEADS:
        raise ValueError(f"hidden must be a multiple of {HEADS}, the number of heads, for a transformer, got {width}")
    return nn.TransformerEncoderLayer(width, HEADS, 2 * width, dropout=0.0, batch_first=True, norm_first=True)


class Transformer(nn.Module):
    """Attention over the rows of a square image: tokens of width ``hidden[0]``, ``len(hidden)`` blocks, token mean."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], outputs: int):
        super().__init__()
        side, width = _side(inputs), hidden[0]
        self.rows = nn.Unflatten(1, (side, side))
        self.embed = nn.Linear(side, width)
        self.place = nn.Parameter(torch.randn(side, width) * 0.1)
        self.blocks = nn.Sequential(*(transformer_block(width) for _ in hidden))
        self.readout = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.blocks(self.embed(self.rows(x)) + self.place).mean(1))


# Usual widths of networks that a perceptron's widths do not suit.
WIDTHS = {"convolutional": (16, 32, 128), "recurrent": (64,), "transformer": (64, 64)}
MODELS = {
    "convolutional": convolutional,
    "last_block": pretrained.last_block,
    "mlp": mlp,
    "normalised": normalised,
    "recurrent": Recurrent,
    "residual": ResidualNetwork,
    "transformer": Transformer,
}
