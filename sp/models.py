"""The networks of the experiments, built by name. Any other module works with the optimizers as well."""

from itertools import pairwise

from torch import nn


def mlp(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Sequential:
    """A multilayer perceptron with ReLU: (B, inputs) -> (B, outputs) logits."""
    widths = (inputs, *hidden)
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


MODELS = {"mlp": mlp}
