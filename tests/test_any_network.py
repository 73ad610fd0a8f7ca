"""The coincidence form works with any network: what it watches, that it learns, and that it depends on no unit."""

import copy
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from sp import ConsolidatingPlasticityOptimizer, NMDACoincidence

BATCH, CLASSES = 12, 3


class Topped(nn.Module):
    """A layer, used as ``call`` says to get one row per example, and a Linear on top that is always watched."""

    def __init__(self, layer, width, call):
        super().__init__()
        self.layer, self.call, self.head = layer, call, nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.head(torch.tanh(self.call(self.layer, x)))


class Adapted(nn.Module):
    """A frozen Linear with a trained low-rank detour, as in LoRA."""

    def __init__(self):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(6, 6), nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
        self.base.requires_grad_(False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second
        second.weight = first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Bare(nn.Module):
    """Parameters that no layer holds."""

    def __init__(self):
        super().__init__()
        self.mix, self.scale = nn.Parameter(0.5 * torch.randn(6, 6)), nn.Parameter(torch.ones(6))

    def forward(self, x):
        return x @ self.mix * self.scale


def plain(layer, x):
    return layer(x)


def places(layer, x):
    return layer(x).mean(1)


def pooled(layer, x):
    return layer(x).flatten(2).mean(2)


def averaged(axis):
    """The mean over the positions of a sequence, which a recurrent layer returns first."""
    return lambda layer, x: layer(x)[0].mean(axis)


def attending(axis, across=False):
    """Self-attention, or cross-attention to a longer sequence; the mean over positions."""

    def call(layer, x):
        other = torch.cat([x.sin(), x.cos()], axis) if across else x
        return layer(x, other, other)[0].mean(axis)

    return call


def attending_to_narrower(axis):
    return lambda layer, x: layer(x, x[..., :3], x[..., :4])[0].mean(axis)


ATTENTION = "in_proj_weight in_proj_bias out_proj.weight out_proj.bias"
SEPARATE = "q_proj_weight k_proj_weight v_proj_weight out_proj.weight out_proj.bias"
RECURRENT = "weight_ih_l0 weight_hh_l0 bias_ih_l0 bias_hh_l0"
BOTH_WAYS = RECURRENT + " " + " ".join(f"{name}_reverse" for name in RECURRENT.split())
ROW, TOKENS, SEQUENCE, TIME_FIRST = (BATCH, 6), (BATCH, 5), (BATCH, 5, 6), (5, BATCH, 6)
PLACES = {1: (BATCH, 4, 7), 2: (BATCH, 4, 5, 5), 3: (BATCH, 4, 4, 4, 4)}
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

# By name: how the layer is made, how many values it returns per example, the shape of the inputs, how it is used, and
# which of its parameters are watched.
NETWORKS = {}


def add(name, watched, make, width, shape, call=plain):
    NETWORKS[name] = (make, width, shape, call, watched)


norms, old = parametrizations, nn.utils
add("Linear", "weight bias", lambda: nn.Linear(6, 8), 8, ROW)
add("Linear on sequences", "weight bias", lambda: nn.Linear(6, 8), 8, SEQUENCE, places)
add("Embedding", "weight", lambda: nn.Embedding(9, 8), 8, TOKENS, places)
add("tied Linear", "first.weight", lambda: Tied(nn.Linear(6, 6), nn.Linear(6, 6)), 6, ROW)
add("tied Embedding", "first.weight", lambda: Tied(nn.Embedding(9, 6), nn.Linear(6, 9)), 9, TOKENS, places)
add("old weight_norm", "weight_v bias", lambda: old.weight_norm(nn.Linear(6, 8)), 8, ROW)
add("old spectral_norm", "weight_orig bias", lambda: old.spectral_norm(nn.Linear(6, 8)), 8, ROW)
original = "parametrizations.weight.original"
add("weight_norm", f"{original}1 bias", lambda: norms.weight_norm(nn.Linear(6, 8)), 8, ROW)
add("spectral_norm", f"{original} bias", lambda: norms.spectral_norm(nn.Linear(6, 8)), 8, ROW)
add("normed Conv1d", f"{original}1 bias", lambda: norms.weight_norm(nn.Conv1d(4, 8, 3)), 8, PLACES[1], pooled)
add("adapters", "down.weight up.weight", Adapted, 6, ROW)
add("bare parameters", "", Bare, 6, ROW)
add("two recurrent layers", "", lambda: nn.GRU(6, 8, 2, batch_first=True), 8, SEQUENCE, averaged(1))
for number, kind in enumerate(CONVOLUTIONS):
    for groups in (1, 2, 4):
        convolution = partial(kind, 4, 8, 3, padding=1, stride=2, groups=groups)
        watched = "weight" if kind.__name__.startswith("ConvT") else "weight bias"
        add(f"{kind.__name__}, {groups} groups", watched, convolution, 8, PLACES[number % 3 + 1], pooled)
attention = partial(nn.MultiheadAttention, 6, 2)
for first, shape, axis in ((True, SEQUENCE, 1), (False, TIME_FIRST, 0)):
    layout, layer = f"batch first {first}", partial(attention, batch_first=first)
    add(f"attention, {layout}", ATTENTION, layer, 6, shape, attending(axis))
    add(f"attention across, {layout}", ATTENTION, layer, 6, shape, attending(axis, across=True))
    add(
        f"attention to others, {layout}",
        SEPARATE,
        partial(layer, kdim=3, vdim=4),
        6,
        shape,
        attending_to_narrower(axis),
    )
    for kind in (nn.RNN, nn.GRU, nn.LSTM):
        layer = partial(kind, 6, 8, batch_first=first)
        add(f"{kind.__name__}, {layout}", RECURRENT, layer, 8, shape, averaged(axis))
        add(
            f"{kind.__name__}, {layout}, both ways",
            BOTH_WAYS,
            partial(layer, bidirectional=True),
            16,
            shape,
            averaged(axis),
        )
        add(f"{kind.__name__} without a batch, {layout}", RECURRENT, layer, 8, ROW, lambda m, x: m(x)[0])


@pytest.fixture(params=NETWORKS)
def name(request):
    return request.param


def network(name):
    """A network in double precision, the same one in every call, with inputs and labels."""
    make, width, shape, call, _ = NETWORKS[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # some layers are built in ways that PyTorch discourages
        model = Topped(make(), width, call).double()
    x = torch.randint(9, shape) if shape == TOKENS else torch.randn(shape, dtype=torch.float64)
    return model, x, torch.randint(CLASSES, (BATCH,))


def optimizer_of(model, **options):
    return ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model), **options)


def train(model, optimizer, x, y, steps, factor=1.0):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        (factor * loss).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_what_is_watched_is_named(name):
    model, _, _ = network(name)
    expected = {f"layer.{watched}" for watched in NETWORKS[name][-1].split()} | {"head.weight", "head.bias"}
    covered, parameters = NMDACoincidence(model).covered(), dict(model.named_parameters())
    assert set(covered) == expected
    assert all(covered[name] is parameters[name] for name in expected)


ranks = pytest.mark.parametrize("options", [{}, {"rank": 4}], ids=["exact", "rank 4"])


@ranks
@pytest.mark.filterwarnings("error:coincidence")
def test_every_trained_parameter_learns_and_the_loss_falls(name, options):
    model, x, y = network(name)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = train(model, optimizer_of(model, **options), x, y, 20)
    assert F.cross_entropy(model(x), y) < losses[0] - 0.02
    for name, p in model.named_parameters():
        assert p.isfinite().all()
        if p.requires_grad and p.grad.abs().max() > 1e-12:
            assert not torch.equal(p, before[name]), name


@ranks
@pytest.mark.parametrize("factor", [0.01, 2.0**33])
def test_the_size_of_the_loss_changes_nothing(name, factor, options):
    (model, x, y), (scaled, _, _) = network(name), network(name)
    train(model, optimizer_of(model, **options), x, y, 10)
    train(scaled, optimizer_of(scaled, **options), x, y, 10, factor)
    for p, q in zip(model.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


@ranks
def test_a_loaded_state_goes_on_as_the_saved_one_would_have(name, options):
    (model, x, y), (other, _, _) = network(name), network(name)
    optimizer, loaded = (optimizer_of(m, refresh_every=5, **options) for m in (model, other))
    train(model, optimizer, x, y, 7)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(model, optimizer, x, y, 7) == train(other, loaded, x, y, 7)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
