"""The watcher sees both sides of every synapse, in the passes that count and in no others."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

from sp import ConsolidatingPlasticityOptimizer, SelectivePlasticityOptimizer
from sp.biology import NMDACoincidence, PlasticityCounter


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


class Fixed(torch.optim.SGD):
    """SGD that says which synapses its gate holds open."""

    gate = None

    def get_param_gate(self, param):
        return self.gate


def steps(optimizer, parameter, gradients):
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()


def test_growing_and_shrinking_while_the_gate_is_open_are_counted():
    parameter = nn.Parameter(torch.zeros(4))
    optimizer = Fixed([parameter], lr=1.0)
    counter = PlasticityCounter(optimizer, every=1)
    optimizer.gate = torch.tensor([1.0, 0.5, 0.4, 1.0])
    steps(optimizer, parameter, [[-1.0, 1.0, -1.0, 0.0], [-1.0, -1.0, 1.0, 0.0], [2.0, -1.0, 1.0, 1.0]])
    seen = counter.events["parameter 0"]
    assert seen.looks == 3
    assert seen.ltp.tolist() == [2, 2, 0, 0]
    assert seen.ltd.tolist() == [1, 1, 0, 1]
    assert seen.shut.tolist() == [0, 0, 3, 0]
    row = counter.frame().iloc[0]
    assert row.to_dict() == {"parameter": "parameter 0", "synapses": 4, "looks": 3, "ltp": 4, "ltd": 3, "shut": 3}
    each = counter.frame(synapses=True)
    assert each.synapse.tolist() == [0, 1, 2, 3] and each.ltp.tolist() == [2, 2, 0, 0]
    counter.reset()
    assert counter.frame()[["looks", "ltp", "ltd", "shut"]].sum().sum() == 0


def test_every_so_many_steps_are_looked_at():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    with PlasticityCounter(optimizer, every=3) as counter:
        steps(optimizer, parameter, [[-1.0]] * 7)
        parameter.grad = None
        optimizer.step()
        optimizer.step()  # the ninth, without a gradient
        assert counter.frame().loc[0, ["looks", "ltp", "ltd"]].tolist() == [2, 2, 0]
    steps(optimizer, parameter, [[-1.0]] * 9)
    assert counter.events["parameter 0"].looks == 2


OPTIMIZERS = {
    "adam": lambda model: torch.optim.Adam(model.parameters()),
    "selective": lambda model: SelectivePlasticityOptimizer(model.parameters(), warmup_steps=0),
    "consolidating": lambda model: ConsolidatingPlasticityOptimizer(model.parameters()),
    "coincidence": lambda model: ConsolidatingPlasticityOptimizer(
        model.parameters(), coincidence=NMDACoincidence(model)
    ),
    "coincidence, rank": lambda model: ConsolidatingPlasticityOptimizer(
        model.parameters(), coincidence=NMDACoincidence(model), rank=2, memory_strength=2.0
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_counter_changes_nothing_and_knows_the_gate_of_every_optimizer(name):
    ends = []
    for counted in (False, True):
        torch.manual_seed(0)
        model = Nested()
        optimizer = OPTIMIZERS[name](model)
        counter = PlasticityCounter(model, every=1) if counted else None
        for _ in range(40):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(6, 2, 8, 8)), torch.randint(5, (6,))).backward()
            optimizer.step()
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*ends, strict=True))
    table = counter.frame().set_index("parameter")
    assert list(table.index) == [name for name, _ in model.named_parameters()]
    assert (table.looks == 40).all() and (table.filter(like="weight", axis=0)[["ltp", "ltd"]] > 0).all().all()
    assert (table.ltp + table.ltd + table.shut <= table.synapses * table.looks).all()
    assert (table.shut > 0).any() == (name != "adam")
    if name != "adam":
        gates = [optimizer.get_param_gate(p) for p in model.parameters()]
        assert [gate.shape for gate in gates] == [p.shape for p in model.parameters()]
        everything = torch.cat([gate.flatten() for gate in gates])
        assert everything.min() >= 0 and everything.max() <= 1 + 1e-6
        assert optimizer.get_diagnostics()["gate_mean"] == pytest.approx(everything.mean().item(), rel=1e-4)


def test_a_counter_of_a_model_counts_its_own_parameters_only_and_ends_with_its_owner():
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    counter = PlasticityCounter(model, every=1)
    optimizer, unrelated = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, other))
    for module, step in ((model, optimizer), (other, unrelated)):
        module(torch.ones(1, 2)).sum().backward()
        step.step()
    assert counter.frame().looks.tolist() == [1, 1]
    gone = weakref.ref(counter)
    before = len(_global_optimizer_pre_hooks)
    del counter
    assert gone() is None and len(_global_optimizer_pre_hooks) == before - 1


def test_what_the_counter_cannot_count_is_an_error():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    with pytest.raises(TypeError, match="must be a torch optimizer or a torch"):
        PlasticityCounter([1])
    with pytest.raises(ValueError, match="every must be a whole number >= 1, got 0"):
        PlasticityCounter(optimizer, every=0)
    with pytest.raises(ValueError, match=r"open_at must be a finite number in \(0, 1\], got 0"):
        PlasticityCounter(optimizer, open_at=0)


def test_a_layer_called_with_its_input_by_name_is_watched():
    model = nn.Linear(3, 2)
    watcher = NMDACoincidence(model)
    x = torch.randn(4, 3)
    model(input=x).sum().backward()
    assert torch.equal(watcher.synapses[0].take().presynaptic[:, :3], x)
