"""The consolidating rule: its diagonal form, what it keeps of old tasks, and its arguments."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from sp import ConsolidatingPlasticityOptimizer, NMDACoincidence, SelectivePlasticityOptimizer
from sp.lab.experiment import Experiment, run


def numpy_diagonal(weights, gradients, *, lr, quantile, warmup, absorber):
    """The diagonal form rewritten from its text, in NumPy and float64, for tensors of at most 8,192 elements in all."""
    ws, cs = [w.astype(np.float64) for w in weights], [np.zeros(w.shape) for w in weights]
    mean_norm, theta, scale = None, None, 0.0
    for t, gs in enumerate(gradients, start=1):
        norm = math.sqrt(sum((g**2).sum() for g in gs))
        if t == 2 and mean_norm > 50 * norm:  # the first gradient was odd: nothing of it is kept
            mean_norm, cs = None, [np.zeros_like(c) for c in cs]
        kept = norm if mean_norm is None else min(norm, absorber * max(mean_norm, 0.5 * scale))
        mean_norm = kept if mean_norm is None else 0.99 * mean_norm + 0.01 * kept
        scale = mean_norm if t <= 10 else scale
        gs = [g * kept / (norm + 1e-30) for g in gs]
        cs = [c + g**2 for c, g in zip(cs, gs, strict=True)]
        if t <= warmup and (t <= 10 or t % 10 == 0 or t == warmup):
            theta = max(np.quantile(np.concatenate([c.ravel() for c in cs]), quantile) * warmup / t, 1e-30)
        ws = [w - lr * g / math.sqrt(theta) * theta / (theta + c) for w, g, c in zip(ws, gs, cs, strict=True)]
    return ws


@settings(max_examples=60, deadline=None)
@example([()], 0.5, 0.5, 1, 1.0, 1)  # the first gradient is odd
@given(
    st.lists(st.lists(st.integers(1, 6), max_size=4).map(tuple), min_size=1, max_size=4),
    st.floats(0, 0.5),
    st.floats(0.05, 0.95),
    st.sampled_from([1, 3, 25, 100]),
    st.sampled_from([1.0, 1.25, 100.0]),
    st.integers(0, 10**6),
)
def test_diagonal_form_fast_reference_and_numpy_agree(shapes, lr, quantile, warmup, absorber, seed):
    generator = torch.Generator().manual_seed(seed)
    start = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    history = [
        [torch.randn(shape, dtype=torch.float64, generator=generator) ** 3 for shape in shapes] for _ in range(60)
    ]
    results = []
    for foreach in (True, False):
        parameters = [nn.Parameter(w.clone()) for w in start]
        optimizer = ConsolidatingPlasticityOptimizer(
            parameters, lr, quantile, warmup, absorber=absorber, foreach=foreach
        )
        for gradients in history:
            for p, g in zip(parameters, gradients, strict=True):
                p.grad = g.clone()
            optimizer.step()
        results.append([p.detach().numpy() for p in parameters])
    options = {"lr": lr, "quantile": quantile, "warmup": warmup, "absorber": absorber}
    expected = numpy_diagonal([w.numpy() for w in start], [[g.numpy() for g in gs] for gs in history], **options)
    for fast, reference, right in zip(*results, expected, strict=True):
        # the threshold is one number for all tensors and kept in float32
        np.testing.assert_allclose(fast, reference, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(reference, right, rtol=1e-4, atol=1e-5)


def test_diagonal_state_is_one_tensor_a_parameter():
    model = nn.Linear(5, 3)
    optimizer = ConsolidatingPlasticityOptimizer(model.parameters())
    model(torch.randn(2, 5)).sum().backward()
    optimizer.step()
    assert [[v.shape for v in optimizer.state[p].values()] for p in model.parameters()] == [[(3, 5)], [(3,)]]


def test_the_gate_of_the_diagonal_form_is_one_half_at_the_threshold():
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = ConsolidatingPlasticityOptimizer([parameter], threshold_quantile=0.5, warmup_steps=1)
    parameter.grad = torch.tensor([1.0, 2.0, 4.0])
    optimizer.step()  # C = (1, 4, 16), theta = 4
    torch.testing.assert_close(optimizer.get_param_gate(parameter), torch.tensor([4 / 5, 1 / 2, 1 / 5]))


@pytest.mark.parametrize("optimizer", ["consolidating", "coincidence"])
@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_the_scale_of_the_loss_does_not_matter(optimizer, scale, monkeypatch):
    experiment = Experiment(tasks=2, optimizer=optimizer, epochs=5)
    expected = run(experiment).accuracy[-1].mean()
    monkeypatch.setattr("torch.nn.functional.cross_entropy", lambda z, y: scale * F.nll_loss(z.log_softmax(1), y))
    assert abs(run(experiment).accuracy[-1].mean() - expected) < 0.005


@pytest.mark.parametrize("stream", [{"tasks": 2}, {"tasks": 5}])
def test_old_tasks_are_kept_without_replay_and_without_boundaries(stream):
    kept = run(Experiment(optimizer="coincidence", epochs=5, **stream)).accuracy[-1]
    assert kept.mean() > 0.9 and kept[0] > 0.85
    assert run(Experiment(optimizer="adam", epochs=5, **stream)).accuracy[-1][0] < 0.1


@pytest.mark.parametrize(("name", "hidden"), [("convolutional", (8, 16, 64)), ("residual", (100, 100))])
def test_other_networks_keep_old_tasks(name, hidden):
    def kept(optimizer):
        base = Experiment(optimizer=optimizer, epochs=5, tasks=5, model=name, hidden=hidden)
        return np.mean([run(replace(base, seed=seed)).accuracy[-1].mean() for seed in (1, 4)])

    assert kept("coincidence") > 0.8 and kept("adam") < 0.3


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("lr", -0.1, ValueError),
        ("lr", math.nan, ValueError),
        ("threshold_quantile", 1.0, ValueError),
        ("warmup_steps", 0, ValueError),
        ("memory_strength", 0.0, ValueError),
        ("rank", 0, ValueError),
        ("rank", 2.5, TypeError),
        ("refresh_every", 0, ValueError),
        ("equalisation", -1, ValueError),
        ("response_bound", 0.0, ValueError),
        ("response_bound", "1", TypeError),
        ("absorber", 0.5, ValueError),
        ("foreach", None, TypeError),
        ("on_nonfinite", "warn", ValueError),
    ],
)
def test_wrong_arguments_are_named_with_their_value(name, value, error):
    with pytest.raises(error, match=name) as caught:
        ConsolidatingPlasticityOptimizer([nn.Parameter(torch.zeros(3))], **{name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("absorber", 2.0), ("threshold_quantile", 0.5), ("warmup_steps", 7)])
def test_what_all_groups_share_cannot_be_another_group_s(name, value):
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=f"{name} must be that of all groups"):
        ConsolidatingPlasticityOptimizer([{"params": [first]}, {"params": [second], name: value}])
    ConsolidatingPlasticityOptimizer([{"params": [first]}, {"params": [second], "lr": 0.5}], **{name: value})
    equal = [{"params": [first], name: value}, {"params": [second], name: value}]
    assert ConsolidatingPlasticityOptimizer(equal).param_groups[1][name] == value


def test_a_watcher_of_another_model_or_options_without_one_are_pointed_out():
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="coincidence watches none of the parameters"):
        ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(nn.Linear(3, 2)))
    with pytest.raises(ValueError, match="params must hold a parameter to train, but all are frozen"):
        ConsolidatingPlasticityOptimizer(model.requires_grad_(False).parameters(), coincidence=NMDACoincidence(model))
    with pytest.raises(TypeError, match=r"params must be parameters, got a Linear: pass model.parameters\(\)"):
        ConsolidatingPlasticityOptimizer(model)
    with pytest.warns(UserWarning, match="rank has no effect without coincidence="):
        ConsolidatingPlasticityOptimizer(model.parameters(), rank=4)


@pytest.mark.parametrize("kind", [ConsolidatingPlasticityOptimizer, SelectivePlasticityOptimizer])
def test_a_subclass_may_have_arguments_of_its_own(kind):
    class Named(kind):
        def __init__(self, params, name):
            super().__init__(params, lr=0.5)
            self.name = name

    optimizer = Named([nn.Parameter(torch.zeros(2))], name="mine")
    assert optimizer.param_groups[0]["lr"] == 0.5 and "name" not in optimizer.param_groups[0]


def test_where_most_synapses_were_never_used_the_threshold_is_that_of_the_others():
    w = nn.Parameter(torch.ones(100))
    optimizer = ConsolidatingPlasticityOptimizer([w], warmup_steps=1)
    w.grad = torch.zeros(100)
    w.grad[:5] = 0.5
    optimizer.step()
    assert optimizer.param_groups[0]["shared"]["threshold"].item() == pytest.approx(0.25)


def test_the_scale_at_the_beginning_is_that_of_ten_steps():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = ConsolidatingPlasticityOptimizer([parameter], absorber=100.0)
    mean = 1.0
    for number in range(12):
        parameter.grad = torch.full((1,), 1.0 + number)
        optimizer.step()
        mean = 0.99 * mean + 0.01 * (1 + number) if number < 10 else mean
    assert float(optimizer.param_groups[0]["shared"]["scale"]) == pytest.approx(mean, rel=1e-5)


def test_gradients_of_a_group_at_rest_do_not_count():
    moved = []
    for scale in (1.0, 1e3):
        parameter, at_rest = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(5))
        optimizer = ConsolidatingPlasticityOptimizer([{"params": [parameter]}, {"params": [at_rest], "lr": 0.0}])
        generator = torch.Generator().manual_seed(0)
        for number in range(20):
            parameter.grad = torch.randn(5, generator=generator)
            at_rest.grad = torch.full((5,), scale * number)
            optimizer.step()
        assert (at_rest == 0).all()
        moved.append(parameter.detach())
    torch.testing.assert_close(*moved, rtol=0, atol=0)
