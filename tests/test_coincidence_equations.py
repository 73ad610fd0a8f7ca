"""The coincidence form, rewritten from its equations in NumPy, takes the steps that the optimizer takes."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from sp.optim import coincidence as constants
from sp.optim.memory import sampled
from tests.test_coincidence import batches, step, watched


class Layer:
    """A layer of the coincidence form, rewritten from its text in NumPy: a weight W, its bias the last column."""

    def __init__(self, weight, matrices, network, options):
        self.W, self.matrices, self.network, self.options = weight, matrices, network, options
        out, width = weight.shape
        self.A, self.P = np.zeros((width, width)), np.eye(width)
        self.S, self.Q = np.zeros((out, out)), np.eye(out)
        self.t, self.bounded, self.input_mean = 0, 0, np.zeros(width)
        self.power = self.squared_length = self.mean = self.scale = self.spread = 0.0

    readout = False

    def step(self, X, D, examples):
        """X: (N, d), D: (N, out) rows that came from this many examples."""
        o, c = self.options, constants
        self.t += 1
        out, width = self.W.shape
        rate = -o["lr"] if o["maximize"] else o["lr"]
        self.W = self.W * (1 - o["lr"] * o["weight_decay"])
        length = (X**2).sum(1).mean()
        share = min(1.0, c.OUTLYING * self.squared_length / length) if self.t > c.SCALE_STEPS else 1.0
        self.squared_length += (share * length - self.squared_length) / self.t
        self.input_mean += (math.sqrt(share) * X.mean(0) - self.input_mean) / self.t
        seen = self.t * len(X)
        variance = (self.squared_length - (self.input_mean**2).sum()) * seen / (seen - 1)
        if self.t <= c.SCALE_STEPS:
            self.power = self.squared_length
        batch = math.sqrt(examples / c.REFERENCE_BATCH)
        keep = c.AVERAGE ** (examples / c.REFERENCE_BATCH)
        gradient = D.T @ X
        norm = math.sqrt((gradient**2).sum() / self.power)
        if self.t == 1:
            kept = self.mean = norm
        else:
            kept = min(norm, o["absorber"] * max(self.mean, c.FLOOR * self.scale))
            self.mean = keep * self.mean + (1 - keep) * kept
        if self.t <= c.SCALE_STEPS:
            self.scale = self.mean
        counted = batch / (examples * variance)
        self.A = math.exp(-examples / o["horizon"]) * self.A + counted * X.T @ X
        self.S = keep * self.S + examples * (kept / norm) ** 2 * D.T @ D
        seen = X[sampled(torch.arange(len(X))[:, None], self.t, c.RESPONSE_ROWS)[0].flatten().numpy(force=True)]
        if self.t % o["refresh_every"] == 0 or (self.t < c.EARLY and self.t % 4 == 1):
            self.P = np.linalg.inv(np.eye(width) + o["retention"] * self.A)
            self.Q = np.linalg.inv(np.eye(out) + o["equalisation"] * self.S / self.S.diagonal().mean())
            self.Q *= np.trace(self.S) / np.trace(self.Q @ self.S)
            spread = math.sqrt(((seen @ self.W.T) ** 2).mean())
            kept_spread = c.SPREAD_AVERAGE if self.spread else 0.0
            self.spread = kept_spread * self.spread + (1 - kept_spread) * spread
        answers = max(self.spread, math.sqrt(self.power / (3 * width)))
        gain = min(max(len(self.W), c.SMALLEST_GAIN), c.LARGEST_GAIN if self.readout else c.GAIN)
        share = 1 / math.sqrt(self.matrices)
        if self.readout and self.network.deep:
            largest = c.LARGEST_SHARE if self.network.time_steps else c.LARGEST_STRETCH * share
            share = min(share * max(self.power / variance, 1.0), largest)
        several = len(X) / examples
        share /= several if self.network.time_steps else math.sqrt(several)
        size = rate * gain * o["retention"] * answers * share
        size *= batch * kept / norm * (self.power / variance) ** c.BOOST / (self.scale * variance)
        change = size * self.Q @ gradient @ self.P
        if o["response_bound"] is not None:
            excess = math.sqrt(((seen @ change.T) ** 2).mean()) / (o["response_bound"] * answers)
            self.bounded += excess > 1
            change = change / max(1.0, excess)
        self.W = self.W - change


def with_ones(x, bias):
    return np.c_[x, np.ones(len(x))] if bias else x


def softmax_error(z, y):
    e = np.exp(z - z.max(1, keepdims=True))
    return (e / e.sum(1, keepdims=True) - np.eye(z.shape[1])[y]) / len(z)


class Perceptron:
    """Tanh between two layers."""

    deep = time_steps = False

    def __init__(self, bias):
        self.bias = bias
        self.model = nn.Sequential(nn.Linear(7, 30, bias=bias), nn.Tanh(), nn.Linear(30, 4, bias=bias)).double()
        self.watched = (self.model[0], self.model[2])

    def rows(self, layers, x, y):
        first, second = (layer.W for layer in layers)
        X = with_ones(x, self.bias)
        h = np.tanh(X @ first.T)
        H = with_ones(h, self.bias)
        d = softmax_error(H @ second.T, y)
        return (X, (d @ second)[:, :30] * (1 - h**2)), (H, d)


class Deep:
    """Four layers with a logistic function between them, whose outputs have a large common mean."""

    deep, time_steps = True, False

    def __init__(self, bias):
        self.bias = bias
        widths = (7, 12, 12, 12, 4)
        layers = [nn.Linear(inputs, outputs, bias=bias) for inputs, outputs in pairwise(widths)]
        for layer in layers:  # so that examples differ in what the last layers see
            nn.init.normal_(layer.weight)
        self.model = nn.Sequential(*(m for layer in layers for m in (layer, nn.Sigmoid())))[:-1].double()
        self.watched = layers

    def rows(self, layers, x, y):
        matrices, inputs = [layer.W for layer in layers], [with_ones(x, self.bias)]
        for matrix in matrices[:-1]:
            inputs.append(with_ones(1 / (1 + np.exp(-inputs[-1] @ matrix.T)), self.bias))
        errors = [softmax_error(inputs[-1] @ matrices[-1].T, y)]
        for matrix, entered in zip(matrices[:0:-1], inputs[:0:-1], strict=True):
            h = entered[:, :12]
            errors.append((errors[-1] @ matrix)[:, :12] * h * (1 - h))
        return list(zip(inputs, errors[::-1], strict=True))


class Convolutional:
    """A convolution of stride 2 over 7 x 1 images of one channel, padded by one, tanh, and a layer on top."""

    deep, time_steps = True, False  # deep, since an example has several patches

    def __init__(self, bias):
        self.bias = bias
        self.model = nn.Sequential(
            nn.Unflatten(1, (1, 7, 1)),
            nn.Conv2d(1, 5, (3, 1), stride=(2, 1), padding=(1, 0), bias=bias),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(20, 4, bias=bias),
        ).double()
        self.watched = (self.model[1], self.model[4])

    def rows(self, layers, x, y):
        first, second = (layer.W for layer in layers)
        padded = np.pad(x, ((0, 0), (1, 1)))
        patches = np.stack([padded[:, 2 * place : 2 * place + 3] for place in range(4)], 1)  # (B, 4, 3)
        X = with_ones(patches.reshape(-1, 3), self.bias)
        h = np.tanh(X @ first.T)  # (B 4, 5)
        H = with_ones(h.reshape(len(x), 4, 5).transpose(0, 2, 1).reshape(len(x), 20), self.bias)
        d = softmax_error(H @ second.T, y)
        back = (d @ second)[:, :20].reshape(len(x), 5, 4).transpose(0, 2, 1).reshape(-1, 5)
        return (X, back * (1 - h**2)), (H, d)


class MeanOverTime(nn.Module):
    def forward(self, states):
        return states.mean(1)


class TimeSteps:
    """A layer over seven time steps of one value each, tanh, their mean, and a layer on top."""

    deep = time_steps = True

    def __init__(self, bias):
        self.bias = bias
        self.model = nn.Sequential(
            nn.Unflatten(1, (7, 1)),
            nn.Linear(1, 5, bias=bias),
            nn.Tanh(),
            MeanOverTime(),
            nn.Linear(5, 4, bias=bias),
        ).double()
        self.watched = (self.model[1], self.model[4])

    def rows(self, layers, x, y):
        first, second = (layer.W for layer in layers)
        X = with_ones(x.reshape(-1, 1), self.bias)
        h = np.tanh(X @ first.T)  # (B 7, 5)
        H = with_ones(h.reshape(len(x), 7, 5).mean(1), self.bias)
        d = softmax_error(H @ second.T, y)
        back = (d @ second)[:, None, :5].repeat(7, 1).reshape(-1, 5) / 7
        return (X, back * (1 - h**2)), (H, d)


OPTION_SETS = {
    "default": {},
    "weight decay": {"weight_decay": 0.2},
    "maximize": {"maximize": True, "lr": 0.02},
    "no equalisation": {"equalisation": 0.0},
    "strong equalisation": {"equalisation": 3.0, "absorber": 1.0},
    "no bound": {"response_bound": None, "lr": 0.03},
    "a tight bound": {"response_bound": 0.02},
    "a horizon": {"horizon": 60.0, "retention": 20.0},
    "looks in every step": {"refresh_every": 1, "absorber": 3.0},
}
SIZES = {"equal batches": [20] * 25, "batches that vary": [20, 3, 40, 1, 90, 12, 25] * 4}


def both(kind, bias, options, sizes):
    """Each layer's weights from the optimizer and from the equations, and how often a step was bounded."""
    torch.manual_seed(0)
    network = kind(bias)
    optimizer = watched(network.model, **{"refresh_every": 6, "response_bound": 0.15, **options})
    group = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}

    def matrix(module):
        weight = module.weight.detach().flatten(1)
        return (torch.cat([weight, module.bias.detach()[:, None]], 1) if bias else weight).numpy(force=True).copy()

    layers = [Layer(matrix(module), len(network.watched), network, group) for module in network.watched]
    layers[-1].readout = True
    for x, y in batches(1, sizes):
        step(network.model, optimizer, x, y)
        for layer, (X, D) in zip(layers, network.rows(layers, x.numpy(force=True), y.numpy(force=True)), strict=True):
            layer.step(X, D, len(x))
    made = [(matrix(module), layer.W) for module, layer in zip(network.watched, layers, strict=True)]
    return made, sum(layer.bounded for layer in layers)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("options", OPTION_SETS.values(), ids=OPTION_SETS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("kind", [Perceptron, Convolutional])
def test_every_layer_follows_the_equations(kind, bias, options, sizes):
    made, bounded = both(kind, bias, options, sizes)
    for weights, wanted in made:
        np.testing.assert_allclose(weights, wanted, rtol=1e-4, atol=1e-5)
    if options.get("response_bound", 1) is not None and "maximize" not in options:
        assert bounded


@pytest.mark.parametrize("kind", [Deep, TimeSteps])
def test_networks_whose_readout_sees_inputs_that_are_alike_follow_the_equations(kind):
    """Few steps, since a large common mean amplifies the rounding of inverses in single precision."""
    made, _ = both(kind, True, {"response_bound": None, "lr": 0.01}, [20] * 6)
    for weights, wanted in made:
        np.testing.assert_allclose(weights, wanted, rtol=0, atol=1e-3)
