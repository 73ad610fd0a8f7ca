"""The coincidence form: its formulas, what its watcher sees and leaves alone, and its state."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sp import ConsolidatingPlasticityOptimizer, NMDACoincidence
from sp.models import MODELS


class NumpyCoincidence:
    """The coincidence form with exact memories once more from its text, for a perceptron with one hidden layer."""

    def __init__(self, weights, lr, a, p, absorber, every, response_bound):
        self.response_bound = response_bound or math.inf
        self.weights, self.lr, self.p, self.absorber, self.every = weights, lr, p, absorber, every
        self.strengths, self.powers = [a, 0.1], [2, 1]
        self.A = [np.zeros((w.shape[1],) * 2) for w in weights]
        self.P = [np.eye(w.shape[1]) for w in weights]
        self.S, self.Q = np.zeros((len(weights[0]),) * 2), np.eye(len(weights[0]))
        self.power, self.t, self.mean_norm, self.bounded = [0.0, 0.0], 0, None, 0

    def step(self, x, y):
        self.t += 1
        first, second = self.weights
        size = len(x)
        x = np.c_[x, np.ones(size)]
        h = np.c_[np.maximum(x @ first.T, 0), np.ones(size)]
        z = h @ second.T
        e = np.exp(z - z.max(1, keepdims=True))
        d2 = (e / e.sum(1, keepdims=True) - np.eye(z.shape[1])[y]) / size
        d1 = (d2 @ second)[:, :-1] * (h[:, :-1] > 0)
        inputs, errors = [x, h], [d1, d2]
        if self.t <= 10:
            self.power = [q + ((v**2).sum(1).mean() - q) / self.t for q, v in zip(self.power, inputs, strict=True)]
        gradients = [d.T @ v for d, v in zip(errors, inputs, strict=True)]
        norm = math.sqrt(sum((g**2).sum() / q for g, q in zip(gradients, self.power, strict=True)))
        keep = 0.99 ** (size / 128)
        kept = norm if self.t == 1 else min(norm, self.absorber * max(self.mean_norm, 0.5 * self.scale))
        self.mean_norm = kept if self.t == 1 else keep * self.mean_norm + (1 - keep) * kept
        if self.t <= 10:
            self.scale = self.mean_norm
        self.S = keep * self.S + size * (kept / norm) ** 2 * d1.T @ d1
        due = [self.t % every == 0 or (self.t < 20 and self.t % 4 == 1) for every in (self.every, self.every // 4)]
        if due[0]:
            self.Q = np.linalg.inv(np.eye(len(self.S)) + self.p * self.S / np.trace(self.S))
        for i in range(2):
            self.A[i] += math.sqrt(size / 128) * inputs[i].T @ inputs[i] / (size * self.power[i])
            if due[i]:
                P = np.linalg.inv(np.eye(len(self.A[i])) + self.A[i] / self.strengths[i])
                self.P[i] = np.linalg.matrix_power(P, self.powers[i])
            step = gradients[i] @ self.P[i] * kept / norm / self.scale / self.power[i]
            step = self.lr * 80 / self.strengths[i] * math.sqrt(size / 128) * step
            if i == 0:
                step = self.Q @ step
                excess = math.sqrt(3 * ((x @ step.T) ** 2).mean() / (x**2).mean()) / self.response_bound
                self.bounded += excess > 1
                step = step / max(1, excess)
            self.weights[i] = self.weights[i] - step


def digits_like(seed, steps, size=16, inputs=7, classes=4):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, size, inputs, dtype=torch.float64, generator=generator)
    return x, torch.randint(classes, (steps, size), generator=generator)


@pytest.mark.parametrize(
    ("options", "bounded"),
    [
        ({}, False),
        ({"lr": 0.02, "memory_strength": 3.0, "equalisation": 5.0, "absorber": 1.0}, False),
        ({"lr": 0.3, "response_bound": 0.5}, True),
    ],
)
def test_coincidence_form_agrees_with_numpy(options, bounded):
    torch.manual_seed(0)
    model = MODELS["mlp"](7, (6,), 4).double()
    weights = [torch.cat([m.weight, m.bias[:, None]], 1).detach().numpy() for m in (model[0], model[2])]
    optimizer = ConsolidatingPlasticityOptimizer(
        model.parameters(), coincidence=NMDACoincidence(model), refresh_every=8, **options
    )
    group = optimizer.param_groups[0]
    names = ("lr", "memory_strength", "equalisation", "absorber", "refresh_every", "response_bound")
    numpy = NumpyCoincidence(weights, *(group[name] for name in names))
    for x, y in zip(*digits_like(1, 60), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        numpy.step(x.numpy(), y.numpy())
    assert (numpy.bounded > 0) == bounded
    for module, expected in zip((model[0], model[2]), numpy.weights, strict=True):
        np.testing.assert_allclose(module.weight.detach().numpy(), expected[:, :-1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(module.bias.detach().numpy(), expected[:, -1], rtol=1e-4, atol=1e-5)


def responses(layers, inputs):
    return [layer(x).detach() for layer, x in zip(layers, inputs, strict=True)]


@pytest.mark.parametrize("rank", [4, None])
def test_no_step_overturns_a_hidden_layer_while_the_readout_steps_as_far_as_it_likes(rank):
    torch.manual_seed(0)
    model = MODELS["convolutional"](64, (4, 6, 12), 3)
    optimizer = ConsolidatingPlasticityOptimizer(
        model.parameters(), lr=50.0, coincidence=NMDACoincidence(model), rank=rank, equalisation=0.0
    )
    layers, inputs = [m for m in model if isinstance(m, nn.Linear | nn.Conv2d)], []
    hooks = [m.register_forward_hook(lambda module, args, out: inputs.append(args[0].detach())) for m in layers]
    F.cross_entropy(model(torch.randn(32, 64)), torch.randint(3, (32,))).backward()
    for hook in hooks:
        hook.remove()
    before = responses(layers, inputs)
    optimizer.step()
    after = responses(layers, inputs)
    changes = [
        ((new - old).square().mean() / old.square().mean()).sqrt() for old, new in zip(before, after, strict=True)
    ]
    assert all(0.5 < change < 2 for change in changes[:-1]) and changes[-1] > 10, changes


@pytest.mark.parametrize("start", [0.0, 100.0])
@pytest.mark.parametrize("response_bound", [0.5, 2.0, None])
def test_the_bound_is_in_units_of_a_fresh_layer_s_response_and_a_perceptron_has_none(start, response_bound):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))
    nn.init.constant_(model[0].weight, start), nn.init.zeros_(model[0].bias)
    optimizer = ConsolidatingPlasticityOptimizer(
        model.parameters(), lr=50.0, coincidence=NMDACoincidence(model), response_bound=response_bound
    )
    x = torch.randn(16, 5)
    before = model[0](x)
    F.cross_entropy(model(x), torch.randint(2, (16,))).backward()
    optimizer.step()
    fresh = torch.cat([x, torch.ones(16, 1)], 1).square().mean() / 3
    change = ((model[0](x) - before).square().mean() / fresh).sqrt().item()
    assert change > 10 if response_bound is None else change == pytest.approx(response_bound, rel=1e-3)


def two_tasks(model, optimizer, steps=40, scale=1.0, size=32):
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        x = torch.randn(size, 1, 8, 8, generator=generator).flatten(1)
        y = torch.randint(5, (size,), generator=generator) + 5 * (step >= steps // 2)
        optimizer.zero_grad()
        (scale * F.cross_entropy(model(x), y)).backward()
        optimizer.step()


@pytest.mark.parametrize("rank", [128, None])
def test_state_is_at_most_adam_s_with_a_sketch(rank):
    model = MODELS["mlp"](784, (256, 256), 10)
    optimizer = ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model), rank=rank)
    adam = torch.optim.Adam(model.parameters())
    F.cross_entropy(model(torch.randn(8, 784)), torch.randint(10, (8,))).backward()
    optimizer.step()
    adam.step()
    sizes = [sum(v.nbytes for s in o.state.values() for v in s.values()) for o in (optimizer, adam)]
    assert (sizes[0] <= sizes[1]) == (rank is not None)


@pytest.mark.parametrize("rank", [4, None])
@pytest.mark.parametrize("name", ["mlp", "convolutional", "attention"])
def test_resume_from_a_state_dict_is_exact_with_the_memories(tmp_path, name, rank):
    hidden = {"mlp": (12,), "convolutional": (3, 4, 12), "attention": (12,)}[name]

    def build():
        torch.manual_seed(0)
        model = MODELS[name](64, hidden, 4)
        watcher = NMDACoincidence(model)
        return model, ConsolidatingPlasticityOptimizer(
            model.parameters(), coincidence=watcher, rank=rank, refresh_every=5, warmup_steps=30
        )

    x, y = digits_like(3, 60, inputs=64)

    def train(model, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            F.cross_entropy(model(x[step].float()), y[step]).backward()
            optimizer.step()

    straight, optimizer = build()
    train(straight, optimizer, range(60))
    model, optimizer = build()
    train(model, optimizer, range(23))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed, optimizer = build()
    resumed.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    train(resumed, optimizer, range(23, 60))
    for p, q in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("when", [0, 5, 19, 30])
def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(watched, when):
    torch.manual_seed(0)
    model = MODELS["mlp"](7, (150,), 4)
    watcher = NMDACoincidence(model) if watched else None
    optimizer = ConsolidatingPlasticityOptimizer(
        model.parameters(), coincidence=watcher, **({"rank": 4} if watched else {})
    )
    for step, (x, y) in enumerate(zip(*digits_like(2, 40), strict=True)):
        optimizer.zero_grad()
        x = x.float()
        if step == when:
            x[0] = math.inf
        F.cross_entropy(model(x), y).backward()
        before = copy.deepcopy(model.state_dict())
        optimizer.step()
        if step == when:
            torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    diagnostics = optimizer.get_diagnostics()
    assert (diagnostics["step_count"], diagnostics["skipped_steps"]) == (39, 1)
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(v.isfinite().all() for s in optimizer.state.values() for v in s.values())


def test_accumulated_gradients_are_one_larger_batch():
    x, y = digits_like(4, 30, size=16)
    models = []
    for parts in (1, 4):
        torch.manual_seed(0)
        model = MODELS["mlp"](7, (6,), 4).double()
        optimizer = ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model))
        for batch, labels in zip(x, y, strict=True):
            optimizer.zero_grad()
            for part, part_labels in zip(batch.chunk(parts), labels.chunk(parts), strict=True):
                (F.cross_entropy(model(part), part_labels) / parts).backward()
            optimizer.step()
        models.append(model)
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_only_training_passes_move_the_memory():
    model = MODELS["mlp"](7, (6,), 4)
    watcher = NMDACoincidence(model)
    optimizer = ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=watcher)
    x, y = digits_like(5, 2)
    F.cross_entropy(model(x[0].float()), y[0]).backward()
    optimizer.step()
    memory = optimizer.state[model[0].weight]["inputs_memory"].clone()
    model.eval()
    F.cross_entropy(model(x[1].float()), y[1]).backward()
    with torch.no_grad():
        model(x[1].float())
    with pytest.warns(UserWarning, match="the layer '.' has a gradient, but no forward pass"):
        optimizer.step()
    assert torch.equal(optimizer.state[model[0].weight]["inputs_memory"], memory)
    model.train()
    F.cross_entropy(model(x[1].float()), y[1]).backward()
    optimizer.zero_grad()  # a pass whose gradient was cleared is forgotten as well
    assert all(synapses.take() is None for synapses in watcher.synapses)


def test_frozen_layers_stay_and_thawed_ones_learn():
    model = MODELS["mlp"](64, (20, 20), 10)
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    optimizer = ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model))
    start = copy.deepcopy(model.state_dict())
    two_tasks(model, optimizer)
    moved = {name: not torch.equal(value, start[name]) for name, value in model.state_dict().items()}
    assert moved == {
        "0.weight": False,
        "0.bias": False,
        "2.weight": True,
        "2.bias": False,
        "4.weight": True,
        "4.bias": True,
    }
    model[0].requires_grad_(True)
    two_tasks(model, optimizer)
    assert not torch.equal(model[0].weight, start["0.weight"])


def test_groups_have_options_of_their_own():
    model = MODELS["mlp"](64, (20,), 10)
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}]
    optimizer = ConsolidatingPlasticityOptimizer(groups, coincidence=NMDACoincidence(model))
    start = copy.deepcopy(model.state_dict())
    two_tasks(model, optimizer)
    assert torch.equal(model[0].weight, start["0.weight"]) and not torch.equal(model[2].weight, start["2.weight"])


def test_only_the_optimizer_s_own_parameters_are_changed():
    for own in ("weight", "bias"):
        model = MODELS["mlp"](64, (20,), 10)
        start = copy.deepcopy(model.state_dict())
        parameters = [getattr(model[0], own), *model[2].parameters()]
        two_tasks(model, ConsolidatingPlasticityOptimizer(parameters, coincidence=NMDACoincidence(model)))
        moved = {name: not torch.equal(value, start[f"0.{name}"]) for name, value in model[0].state_dict().items()}
        assert moved == {"weight": own == "weight", "bias": own == "bias"}


@pytest.mark.parametrize("watched", [True, False])
def test_steps_without_gradients_or_with_zero_gradients_do_not_stop_the_next_ones(watched):
    torch.manual_seed(0)
    model = MODELS["mlp"](7, (6,), 4)
    optimizer = ConsolidatingPlasticityOptimizer(
        model.parameters(), coincidence=NMDACoincidence(model) if watched else None
    )
    optimizer.step()
    for x, y in zip(*digits_like(6, 15), strict=True):
        optimizer.zero_grad()
        (0 * F.cross_entropy(model(x.float()), y)).backward()
        optimizer.step()
    before = copy.deepcopy(model.state_dict())
    for x, y in zip(*digits_like(7, 15), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x.float()), y).backward()
        optimizer.step()
    moved = [(p - before[name]).abs().max().item() for name, p in model.state_dict().items()]
    assert all(1e-5 < distance < 5 for distance in moved)


def test_what_is_not_watched_follows_the_diagonal_form():
    model = nn.Sequential(nn.Linear(64, 20), nn.LayerNorm(20), nn.ReLU(), nn.Linear(20, 10))
    optimizer = ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model))
    start = model[1].weight.detach().clone()
    two_tasks(model, optimizer)
    assert list(optimizer.state[model[1].weight]) == ["consolidated"]
    assert not torch.equal(model[1].weight, start)


@pytest.mark.parametrize("rank", [4, None])
def test_eligibility_has_the_parameter_s_shape_and_diagnostics_their_range(rank):
    model = MODELS["convolutional"](64, (3, 4, 12), 10)
    optimizer = ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model), rank=rank)
    assert optimizer.get_diagnostics()["gate_mean"] == 1.0
    assert all(optimizer.get_param_eligibility(p) is None for p in model.parameters())
    two_tasks(model, optimizer, steps=10)
    early = optimizer.get_diagnostics()
    two_tasks(model, optimizer, steps=60)
    late = optimizer.get_diagnostics()
    for p in model.parameters():
        eligibility = optimizer.get_param_eligibility(p)
        assert eligibility.shape == p.shape and (eligibility >= 0).all() and eligibility.sum() > 0
    assert 0 < late["gate_mean"] < early["gate_mean"] < 1  # plasticity is used up
    assert late["eligibility_mean"] > early["eligibility_mean"] and late["step_count"] == 70


@pytest.mark.parametrize("rank", [None, 2])
def test_the_gate_of_known_inputs_falls_and_that_of_new_ones_stays(rank):
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    optimizer = ConsolidatingPlasticityOptimizer(
        model.parameters(), coincidence=NMDACoincidence(model), rank=rank, refresh_every=1
    )
    assert optimizer.get_param_gate(model[0].weight) is None
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.rand(16, 1) * torch.tensor([1.0, 0, 0])), torch.randint(2, (16,))).backward()
        optimizer.step()
    gate = optimizer.get_param_gate(model[0].weight)
    assert gate.shape == (4, 3) and (gate[:, 0] < 0.1).all()
    torch.testing.assert_close(gate[:, 1:], torch.ones(4, 2), atol=1e-3, rtol=0)
    assert optimizer.get_param_gate(model[2].bias).shape == (2,)


def test_a_layer_that_joins_late_is_measured_in_its_own_first_step():
    torch.manual_seed(0)
    model = nn.ModuleDict({"early": nn.Linear(4, 3), "late": nn.Linear(4, 3), "top": nn.Linear(3, 2)})
    optimizer = ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model))
    x, y = torch.randn(200, 8, 4), torch.randint(2, (200, 8))
    for step in range(200):
        hidden = model["early"](x[step]) + (model["late"](x[step]) if step >= 150 else 0)
        optimizer.zero_grad()
        F.cross_entropy(model["top"](hidden), y[step]).backward()
        optimizer.step()
        if step == 150:
            power = optimizer.state[model["late"].weight]["input_power"]
            torch.testing.assert_close(power, x[step].square().sum(1).mean() + 1)  # the bias has an input of one
    assert torch.equal(optimizer.state[model["late"].weight]["input_power"], power)
    assert all(p.abs().max() < 10 for p in model.parameters())


def test_a_layer_that_was_never_seen_active_stays_where_it_is_and_is_warned_of():
    model = MODELS["mlp"](7, (6,), 4)
    optimizer = ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model))
    x, y = digits_like(5, 2)
    model[0].eval()
    before = [p.detach().clone() for p in model.parameters()]
    F.cross_entropy(model(x[0].float()), y[0]).backward()
    with pytest.warns(UserWarning, match=r"the layer '0' has a gradient.*call model.train\(\)"):
        optimizer.step()
    F.cross_entropy(model(x[1].float()), y[1]).backward()
    optimizer.step()  # it says so once
    changed = [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
    assert changed == [False, False, True, True] and all(p.isfinite().all() for p in model.parameters())


def test_the_gate_of_what_is_not_watched_falls_with_the_number_of_examples():
    gates = {}
    for batch in (16, 64):
        model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
        optimizer = ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model))
        for _ in range(128 // batch):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(batch, 4)), torch.randint(2, (batch,))).backward()
            optimizer.step()
        C, shared = optimizer.state[model[1].weight]["consolidated"], optimizer.param_groups[0]["shared"]
        own = shared["threshold"] / (shared["threshold"] + C)
        gates[batch] = optimizer.get_param_gate(model[1].weight) / own
    assert torch.allclose(gates[16], torch.tensor(1 / (1 + 1 / 0.4)))
    assert torch.allclose(gates[16], gates[64])


def test_a_state_of_another_kind_is_refused_and_changes_nothing():
    def made(width, watch=True, kind=ConsolidatingPlasticityOptimizer, steps=2):
        model = MODELS["mlp"](7, (width,), 4)
        options = {"coincidence": NMDACoincidence(model)} if watch else {}
        optimizer = kind(model.parameters(), **options)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(8, 7)), torch.randint(4, (8,))).backward()
            optimizer.step()
        return model, optimizer

    (_, watched), (_, plain), (_, wider) = made(6), made(6, watch=False), made(9)
    (_, adam), (_, fresh_adam) = (made(6, False, torch.optim.Adam, steps) for steps in (2, 0))
    for state, into, message in (
        (wider.state_dict(), watched, "has a memory of 10 inputs in place of 7"),
        (plain.state_dict(), watched, "lacks the memory of its inputs"),
        (watched.state_dict(), plain, "lacks 'consolidated'"),
        (adam.state_dict(), plain, "its first group lacks 'step_count'"),
        (fresh_adam.state_dict(), watched, "its first group lacks 'step_count'"),
        ({}, watched, "must be what optimizer.state_dict\\(\\) gave"),
    ):
        before = copy.deepcopy(into.state_dict())
        with pytest.raises(ValueError, match=message):
            into.load_state_dict(state)
        assert str(before) == str(into.state_dict())
