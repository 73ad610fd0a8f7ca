"""The watcher sees both sides of every synapse, in the passes that count and in no others."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sp.biology import NMDACoincidence


class Nested(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=bias), nn.ReLU(inplace=True))
        self.head = nn.ModuleDict({"out": nn.Linear(3 * 4 * 4, 5, bias=bias)})

    def forward(self, x):
        return self.head["out"](self.features(x).flatten(1))


MODELS = {
    "linear (B, d)": (lambda: nn.Linear(4, 3), (6, 4)),
    "linear without bias": (lambda: nn.Linear(4, 3, bias=False), (6, 4)),
    "linear (B, T, d)": (lambda: nn.Linear(4, 3), (6, 5, 4)),
    "linear (d,)": (lambda: nn.Linear(4, 3), (4,)),
    "convolution": (lambda: nn.Conv2d(2, 3, 3, padding=1), (6, 2, 5, 5)),
    "convolution without a batch": (lambda: nn.Conv2d(2, 3, 3), (2, 5, 5)),
    "strided, dilated": (lambda: nn.Conv2d(2, 3, (2, 3), stride=(2, 1), dilation=2, padding=(1, 0)), (4, 2, 9, 8)),
    "padding same": (lambda: nn.Conv2d(2, 3, 4, padding="same"), (4, 2, 6, 6)),
    "padding reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (4, 2, 6, 6)),
    "nested": (Nested, (6, 2, 8, 8)),
    "nested without bias": (lambda: Nested(bias=False), (6, 2, 8, 8)),
}


@pytest.mark.parametrize("name", MODELS)
def test_errors_times_activity_are_the_gradient(name):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make().double()
    watcher = NMDACoincidence(model)
    (model(torch.randn(shape, dtype=torch.float64)) ** 2).sum().backward()
    for synapses in watcher.synapses:
        activity = synapses.take()
        torch.testing.assert_close(activity.postsynaptic.T @ activity.presynaptic, synapses.gradient())
        assert activity.examples == (1 if name in ("linear (d,)", "convolution without a batch") else shape[0])
        assert synapses.take() is None


def test_a_layer_used_twice_gives_both_uses_and_counts_each_example_once():
    layer = nn.Linear(4, 4)
    watcher = NMDACoincidence(layer)
    layer(torch.tanh(layer(torch.randn(6, 4)))).sum().backward()
    activity = watcher.synapses[0].take()
    assert activity.presynaptic.shape == (12, 5) and activity.examples == 6
    torch.testing.assert_close(activity.postsynaptic.T @ activity.presynaptic, watcher.synapses[0].gradient())


def test_accumulated_passes_are_one_larger_batch():
    layer = nn.Linear(4, 3)
    watcher = NMDACoincidence(layer)
    x = torch.randn(6, 4)
    for part in x.split(2):
        (layer(part) ** 2).sum().backward()
    activity = watcher.synapses[0].take()
    assert activity.examples == 6
    torch.testing.assert_close(activity.presynaptic[:, :4], x)


def test_tied_layers_share_their_synapses():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    watcher = NMDACoincidence(nn.Sequential(first, second))
    assert list(watcher.covered()) == ["0.weight"]
    second(first(torch.randn(3, 4))).sum().backward()
    (synapses,) = watcher.synapses
    activity = synapses.take()
    torch.testing.assert_close(activity.postsynaptic.T @ activity.presynaptic, first.weight.grad)


def test_passes_that_take_no_part_in_a_step_leave_no_trace():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    watcher = NMDACoincidence(model)
    x = torch.randn(5, 4)
    with torch.no_grad():
        model(x)
    model(x)  # never differentiated
    model.eval()
    model(x).sum().backward()
    model.train()
    assert all(synapses.take() is None for synapses in watcher.synapses)
    model(x).sum().backward()
    watcher.clear()
    assert all(synapses.take() is None for synapses in watcher.synapses)


def test_frozen_layers_are_not_covered_and_not_recorded():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    watcher = NMDACoincidence(model)
    assert list(watcher.covered()) == ["2.weight", "2.bias"]
    model(torch.randn(5, 4)).sum().backward()
    assert watcher.synapses[0].take() is None and watcher.synapses[1].take() is not None


def test_what_cannot_be_watched_is_not_covered():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2)
            self.norm = nn.LayerNorm(4)
            self.grouped = nn.Conv2d(4, 4, 3, groups=2)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
            self.out = nn.Linear(4, 2)

    assert list(NMDACoincidence(Mixed()).covered()) == ["out.weight", "out.bias"]
    with pytest.raises(ValueError, match="no Linear or Conv2d layer"):
        NMDACoincidence(nn.LayerNorm(3))
    with pytest.raises(TypeError, match="model must be a torch"):
        NMDACoincidence([nn.Linear(2, 2)])


def test_checkpointed_layers_are_recorded_once():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    watcher = NMDACoincidence(model)
    x = torch.randn(5, 4, requires_grad=True)
    torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).sum().backward()
    for synapses in watcher.synapses:
        activity = synapses.take()
        torch.testing.assert_close(activity.postsynaptic.T @ activity.presynaptic, synapses.gradient())


@pytest.mark.parametrize("watch_first", [True, False])
def test_a_compiled_model_is_watched(watch_first):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    if watch_first:
        watcher = NMDACoincidence(model)
    compiled = torch.compile(model, backend="aot_eager")
    if not watch_first:
        watcher = NMDACoincidence(compiled)
    assert list(watcher.covered()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    for _ in range(3):
        model.zero_grad()
        compiled(torch.randn(5, 4)).sum().backward()
        for synapses in watcher.synapses:
            activity = synapses.take()
            torch.testing.assert_close(activity.postsynaptic.T @ activity.presynaptic, synapses.gradient())


def test_removed_hooks_watch_no_more():
    model = nn.Linear(4, 3)
    with NMDACoincidence(model) as watcher:
        assert model._forward_hooks
    assert not model._forward_hooks
    watcher.remove()
    model(torch.randn(2, 4)).sum().backward()
    assert watcher.synapses[0].take() is None


def test_neither_keeps_the_other_alive():
    gc.disable()
    try:
        model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        watcher = NMDACoincidence(model)
        F.cross_entropy(model(torch.randn(5, 4)), torch.zeros(5, dtype=torch.long)).backward()
        gone = weakref.ref(model)
        del model
        assert gone() is None
        model = nn.Linear(2, 2)
        watcher = NMDACoincidence(model)
        gone = weakref.ref(watcher)
        del watcher
        assert gone() is None
        model(torch.randn(3, 2)).sum().backward()
    finally:
        gc.enable()


def test_a_layer_called_with_its_input_by_name_is_watched():
    model = nn.Linear(3, 2)
    watcher = NMDACoincidence(model)
    x = torch.randn(4, 3)
    model(input=x).sum().backward()
    assert torch.equal(watcher.synapses[0].take().presynaptic[:, :3], x)
