"""The watcher sees both sides of every synapse, in the passes that count and in no others."""

import copy
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


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


MODELS = {
    "linear (B, d)": (lambda: nn.Linear(4, 3), (6, 4)),
    "linear without bias": (lambda: nn.Linear(4, 3, bias=False), (6, 4)),
    "linear (B, T, d)": (lambda: nn.Linear(4, 3), (6, 5, 4)),
    "linear (d,)": (lambda: nn.Linear(4, 3), (4,)),
    "convolution": (lambda: nn.Conv2d(2, 3, 3, padding=1), (6, 2, 5, 5)),
    "convolution without a batch": (lambda: nn.Conv2d(2, 3, 3), (2, 5, 5)),
    "strided, dilated": (lambda: nn.Conv2d(2, 3, (2, 3), stride=(2, 1), dilation=2, padding=(1, 0)), (4, 2, 9, 8)),
    "padding same": (lambda: nn.Conv2d(2, 3, 3, padding="same", dilation=2), (4, 2, 6, 6)),
    "padding reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (4, 2, 6, 6)),
    "one dimension": (lambda: nn.Conv1d(2, 3, 4, stride=2, bias=False), (4, 2, 11)),
    "three dimensions": (lambda: nn.Conv3d(2, 3, 2, padding=1), (4, 2, 3, 4, 5)),
    "grouped": (lambda: nn.Conv2d(6, 9, 3, groups=3, padding=1), (4, 6, 5, 5)),
    "depthwise": (lambda: nn.Conv1d(4, 8, 3, groups=4), (4, 4, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), (4, 2, 5, 4)),
    "transposed, grouped": (lambda: nn.ConvTranspose1d(4, 6, 3, dilation=2, groups=2, bias=False), (4, 4, 7)),
    "embedding": (lambda: nn.Embedding(7, 3), (4, 5)),
    "nested": (Nested, (6, 2, 8, 8)),
    "nested without bias": (lambda: Nested(bias=False), (6, 2, 8, 8)),
    "used twice in a pass": (Twice, (6, 4)),
}


def made(activity, kind):
    """The gradient that the activity of a layer yields, (g, out, d)."""
    x = activity.presynaptic
    if kind.indices:
        x = F.one_hot(x, 7).to(activity.postsynaptic.dtype)[None]
    return activity.postsynaptic.mT @ x


def input_of(model, shape):
    return torch.randint(7, shape) if isinstance(model, nn.Embedding) else torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("name", MODELS)
def test_errors_times_activity_are_the_gradient_and_a_batch_counts_its_examples(name):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make().double()
    watcher = NMDACoincidence(model)
    (model(input_of(model, shape)) ** 2).sum().backward()
    for synapses in watcher.synapses:
        activity = synapses.take()
        gradient = synapses.gradient()
        torch.testing.assert_close(made(activity, synapses.kind), gradient)
        assert gradient.shape == synapses.shape and gradient.abs().sum() > 0
        assert activity.examples == (1 if name in ("linear (d,)", "convolution without a batch") else shape[0])
        assert synapses.take() is None


@pytest.mark.parametrize("name", MODELS)
def test_rows_drawn_at_random_stand_for_all_rows(name):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make().double()
    watcher, x, few, means = NMDACoincidence(model), input_of(model, shape), {}, {}
    for seed in range(300):
        model.zero_grad()
        (model(x) ** 2).sum().backward()
        for synapses in watcher.synapses:
            few[synapses.name] = activity = synapses.take(8, seed)
            means[synapses.name] = means.get(synapses.name, 0.0) + activity.each * made(activity, synapses.kind) / 300
    model.zero_grad()
    (model(x) ** 2).sum().backward()
    for synapses in watcher.synapses:
        drawn, whole, gradient = few[synapses.name], synapses.take(), synapses.gradient()
        assert (drawn.rows, drawn.examples, drawn.terms) == (whole.rows, whole.examples, whole.terms)
        assert float((means[synapses.name] - gradient).norm()) <= 0.2 * float(gradient.norm())
        given = drawn.presynaptic.shape[0 if synapses.kind.indices else 1]
        assert given == whole.rows if synapses.kind.indices or not whole.several else given < 16


@pytest.mark.parametrize("name", MODELS)
def test_a_change_of_a_layer_s_matrix_is_that_of_its_parameters(name):
    make, shape = MODELS[name]
    model = make().double()
    (model(input_of(model, shape)) ** 2).sum().backward()
    for synapses in NMDACoincidence(model).synapses:
        expected = [p.detach() - p.grad for p in synapses.parameters]
        with torch.no_grad():
            synapses.subtract_(synapses.gradient(), 1.0)
        torch.testing.assert_close([p.detach() for p in synapses.parameters], expected)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))

    def forward(self, x):
        return self.layer(x)


def test_a_layer_whose_weight_is_computed_is_watched_through_what_it_is_computed_from():
    model = Normed()
    watcher = NMDACoincidence(model)
    assert set(watcher.covered()) == {"layer.parametrizations.weight.original1", "layer.bias"}
    x = torch.randn(5, 4)
    model(x).sum().backward()
    assert torch.equal(watcher.synapses[0].take().presynaptic[0, :, :4], x)


RECURRENT = [nn.RNN, nn.GRU, nn.LSTM]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("kind", RECURRENT, ids=lambda kind: kind.__name__)
def test_a_recurrent_layer_shows_inputs_and_the_states_before(kind, both_ways, packed):
    model = kind(4, 3, batch_first=True, bidirectional=both_ways)
    watcher = NMDACoincidence(model)
    x = torch.randn(2, 5, 4)
    given = nn.utils.rnn.pack_padded_sequence(x, [5, 5], batch_first=True) if packed else x
    output = model(given)[0]
    (output.data if packed else output).sum().backward()
    output = nn.utils.rnn.pad_packed_sequence(output, batch_first=True)[0] if packed else output
    seen = {synapses.name: synapses.take() for synapses in watcher.synapses}
    zero, states = torch.zeros(2, 1, 3), output.detach()
    expected = {"weight_ih_l0": x, "weight_hh_l0": torch.cat([zero, states[:, :-1, :3]], 1)}
    if both_ways:
        expected |= {"weight_ih_l0_reverse": x, "weight_hh_l0_reverse": torch.cat([states[:, 1:, 3:], zero], 1)}
    assert set(seen) == set(expected)
    for name, rows in expected.items():
        torch.testing.assert_close(seen[name].presynaptic[0, :, :-1], rows.reshape(10, -1))
        assert seen[name].postsynaptic is None and seen[name].examples == 2


def test_attention_shows_what_enters_it_and_both_sides_of_its_output():
    torch.manual_seed(0)
    model = nn.MultiheadAttention(4, 2, dropout=0.0, batch_first=True).double()
    watcher = NMDACoincidence(model)
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    (model(x, x, x)[0] ** 2).sum().backward()
    inside, output = watcher.synapses
    assert torch.equal(inside.take().presynaptic[0, :, :4], x.reshape(15, 4))
    activity = output.take()
    torch.testing.assert_close(made(activity, output.kind), output.gradient())
    assert activity.examples == 3


def test_what_cannot_be_watched_is_not_covered():
    model = nn.ModuleDict({"norm": nn.LayerNorm(4), "deep": nn.LSTM(4, 4, num_layers=2), "out": nn.Linear(4, 2)})
    assert list(NMDACoincidence(model).covered()) == ["out.weight", "out.bias"]
    with pytest.raises(ValueError, match="no layer that can be watched"):
        NMDACoincidence(nn.LayerNorm(3))
    with pytest.raises(TypeError, match="model must be a torch"):
        NMDACoincidence([nn.Linear(2, 2)])


# Which passes count


def test_tied_layers_share_their_synapses():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    watcher = NMDACoincidence(nn.Sequential(first, second))
    assert list(watcher.covered()) == ["0.weight"]  # each bias goes its own way
    second(first(torch.randn(3, 4))).sum().backward()
    (synapses,) = watcher.synapses
    activity = synapses.take()
    torch.testing.assert_close(made(activity, synapses.kind)[0], first.weight.grad)


def test_frozen_layers_are_not_covered_and_thawed_ones_are():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    watcher = NMDACoincidence(model)
    assert list(watcher.covered()) == ["2.weight", "2.bias"] and not model[0].weight.requires_grad
    model(torch.randn(5, 4)).sum().backward()
    assert watcher.synapses[0].take() is None and watcher.synapses[1].take() is not None
    model[0].requires_grad_(True)
    assert list(watcher.covered()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    model(torch.randn(5, 4)).sum().backward()
    torch.testing.assert_close(
        made(watcher.synapses[0].take(), watcher.synapses[0].kind)[0, :, :4], model[0].weight.grad
    )


def test_checkpointed_layers_are_recorded_once():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    watcher = NMDACoincidence(model)
    x = torch.randn(5, 4, requires_grad=True)
    torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).sum().backward()
    for synapses in watcher.synapses:
        torch.testing.assert_close(made(synapses.take(), synapses.kind), synapses.gradient())


def test_a_layer_called_with_its_input_by_name_is_watched():
    model = nn.Linear(3, 2)
    watcher = NMDACoincidence(model)
    x = torch.randn(4, 3)
    model(input=x).sum().backward()
    assert torch.equal(watcher.synapses[0].take().presynaptic[0, :, :3], x)


# What is left behind


def test_removed_hooks_watch_no_more():
    model = nn.Linear(4, 3)
    with NMDACoincidence(model) as watcher:
        assert model._forward_hooks
    assert not model._forward_hooks
    watcher.remove()
    model(torch.randn(2, 4)).sum().backward()
    assert watcher.synapses[0].take() is None


def test_watching_changes_neither_outputs_nor_gradients_nor_random_numbers():
    ends = []
    for watch in (False, True):
        torch.manual_seed(0)
        model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
        watcher = NMDACoincidence(model) if watch else None
        model(torch.randn(3, 5, 8)).square().sum().backward()
        for synapses in watcher.synapses if watch else ():
            assert synapses.take() is not None
        ends.append([*(p.grad for p in model.parameters()), torch.rand(3)])
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_a_copy_of_the_model_alone_is_not_watched():
    model = nn.Linear(4, 3)
    watcher = NMDACoincidence(model)
    copy.deepcopy(model)(torch.randn(5, 4)).sum().backward()
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


def test_errors_of_two_backward_passes_through_one_call_add_up():
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    watcher = NMDACoincidence(layer)
    outputs = layer(torch.randn(5, 3))
    outputs[:, 0].sum().backward(retain_graph=True)
    outputs[:, 1].square().sum().backward()
    activity = watcher.synapses[0].take()
    torch.testing.assert_close(activity.postsynaptic.mT @ activity.presynaptic, watcher.synapses[0].gradient())


def test_terms_of_several_backward_passes_add_up_and_a_readout_is_first_in_each_of_them():
    lower, upper, x = nn.Linear(3, 3), nn.Linear(3, 2), torch.randn(6, 3)
    watcher = NMDACoincidence(nn.ModuleList([lower, upper]))
    upper(lower(x)).sum().backward()
    lower(x[:4]).sum().backward()
    below, above = (synapses.take() for synapses in watcher.synapses)
    assert (below.terms, below.readout) == (10, False) and (above.terms, above.readout) == (6, True)


def test_attention_with_values_of_their_own_shows_all_that_enters_and_knows_its_batch():
    layer = nn.MultiheadAttention(4, 2)  # time comes first
    watcher = NMDACoincidence(layer)
    query, value = torch.randn(2, 5, 3, 4)
    layer(query, query, value)[0].sum().backward()
    activity = watcher.synapses[0].take()
    torch.testing.assert_close(activity.presynaptic[0, :, :4], torch.cat([query, query, value]).reshape(-1, 4))
    assert activity.examples == 3
