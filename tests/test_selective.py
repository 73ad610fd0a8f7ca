"""The published optimizer: its formulas, its two implementations, its arguments and its state."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sp import NMDACoincidence, SelectivePlasticityOptimizer


def numpy_rule(
    weights, gradients, *, lr, beta, k, percentile, warmup, adaptive, eps, momentum, normalisation, base, floor
):
    """The rule rewritten from its text, in NumPy and float64, for one tensor of at most 8,192 elements."""
    w = weights.astype(np.float64)
    e, m, theta = np.zeros_like(w), np.zeros_like(w), np.inf
    for t, g in enumerate(gradients, start=1):
        g = g.astype(np.float64)
        e = beta * e + (1 - beta) * np.abs(g)
        m = momentum * m + (1 - momentum) * g
        e_hat, m_hat = e / (1 - beta**t), m / (1 - momentum**t)
        if t % 50 == 0 or t == max(warmup, 1):
            seen = max(np.percentile(e_hat, percentile), 1e-30)
            if adaptive:
                theta = seen if np.isinf(theta) else 0.9 * theta + 0.1 * seen
            elif np.isinf(theta) and t >= warmup:
                theta = seen
        if normalisation == "max":
            e_norm, g_norm = e_hat / max(e_hat.max(), 1e-30), np.abs(g) / max(np.abs(g).max(), 1e-30)
        else:
            e_norm, g_norm = np.minimum(e_hat / theta, 1), np.minimum(np.abs(g) / theta, 1)
        gate = np.clip(1 - k * e_norm * (1 - g_norm), floor, 1) if t > warmup else np.ones_like(w)
        w = w - lr * gate * m_hat / ((e_hat + eps) if base == "adam" else 1)
    return w


rules = st.fixed_dictionaries(
    {
        "lr": st.floats(0, 0.1),
        "beta": st.sampled_from([0.0, 0.5, 0.9, 0.99]),
        "k": st.floats(0, 10),
        "percentile": st.floats(0, 100),
        "warmup": st.sampled_from([0, 1, 3, 10, 60]),
        "adaptive": st.booleans(),
        "eps": st.sampled_from([1e-8, 1e-3]),
        "momentum": st.sampled_from([0.0, 0.9]),
        "normalisation": st.sampled_from(["percentile", "max"]),
        "base": st.sampled_from(["adam", "sgd"]),
        "floor": st.sampled_from([0.0, 0.1, 1.0]),
    }
)
shapes = st.lists(st.lists(st.integers(1, 6), max_size=4).map(tuple), min_size=1, max_size=4)


def as_options(rule):
    names = {
        "beta": "trace_decay",
        "k": "plasticity_k",
        "percentile": "threshold_percentile",
        "warmup": "warmup_steps",
        "adaptive": "adaptive_threshold",
        "floor": "gate_min",
    }
    return {names.get(name, name): value for name, value in rule.items()}


def random_run(optimizers, parameters, steps, seed):
    """Give all copies of the parameters the same gradients, with heavy tails and exact zeros, and step."""
    generator = torch.Generator().manual_seed(seed)
    history = []
    for _ in range(steps):
        gradients = [torch.randn(p.shape, generator=generator, dtype=torch.float64) ** 3 for p in parameters[0]]
        gradients = [g * (torch.rand(g.shape, generator=generator) > 0.2) for g in gradients]
        history.append(gradients)
        for optimizer, copies in zip(optimizers, parameters, strict=True):
            for p, g in zip(copies, gradients, strict=True):
                p.grad = g.to(p.dtype)
            optimizer.step()
    return history


@settings(max_examples=60, deadline=None)
@given(rules, shapes, st.sampled_from([torch.float64, torch.float32]), st.integers(0, 10**6))
def test_fast_reference_and_numpy_agree(rule, shapes, dtype, seed):
    start = [torch.randn(shape, dtype=dtype) for shape in shapes]
    parameters = [[nn.Parameter(w.clone()) for w in start] for _ in range(2)]
    optimizers = [
        SelectivePlasticityOptimizer(copies, **as_options(rule), foreach=foreach)
        for copies, foreach in zip(parameters, (True, False), strict=True)
    ]
    history = random_run(optimizers, parameters, 120, seed)
    tolerance = {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 2e-3, "atol": 2e-4}
    for i, w in enumerate(start):
        expected = numpy_rule(w.numpy(), [gradients[i].to(dtype).numpy() for gradients in history], **rule)
        fast, reference = (copies[i].detach().double() for copies in parameters)
        if dtype == torch.float64:
            np.testing.assert_allclose(reference.numpy(), expected, **tolerance)
        torch.testing.assert_close(fast, reference, **tolerance)


@pytest.mark.parametrize("foreach", [False, True])
def test_small_gradients_move_half_precision_weights_by_the_learning_rate(foreach):
    w = nn.Parameter(torch.zeros(4, dtype=torch.float16))
    optimizer = SelectivePlasticityOptimizer([w], lr=1e-4, trace_decay=0.9, foreach=foreach)
    w.grad = torch.full_like(w, 0.001)
    optimizer.step()
    # The trace itself is rounded by 6 %.
    torch.testing.assert_close(w.detach().float(), torch.full((4,), -1e-4), rtol=0.1, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fast_and_reference_agree_in_half_precision(dtype):
    parameters = [[nn.Parameter(torch.ones(5, 4, dtype=dtype))] for _ in range(2)]
    optimizers = [
        SelectivePlasticityOptimizer(copies, lr=0.01, warmup_steps=3, foreach=foreach)
        for copies, foreach in zip(parameters, (True, False), strict=True)
    ]
    random_run(optimizers, parameters, 40, 0)
    torch.testing.assert_close(parameters[0][0], parameters[1][0], rtol=0.05, atol=0.05)
    assert parameters[0][0].isfinite().all() and (parameters[0][0] != 1).float().mean() > 0.8


def test_a_large_tensor_is_sampled_and_both_implementations_see_the_same_sample():
    parameters = [[nn.Parameter(torch.zeros(300, 100))] for _ in range(2)]
    optimizers = [
        SelectivePlasticityOptimizer(copies, warmup_steps=5, foreach=foreach)
        for copies, foreach in zip(parameters, (True, False), strict=True)
    ]
    random_run(optimizers, parameters, 8, 1)
    thresholds = [o.state[copies[0]]["threshold"] for o, copies in zip(optimizers, parameters, strict=True)]
    torch.testing.assert_close(*thresholds)
    exact = optimizers[0].get_param_eligibility(parameters[0][0])
    assert 0.7 < (exact < thresholds[0]).float().mean() < 0.8
    torch.testing.assert_close(parameters[0][0], parameters[1][0], rtol=1e-4, atol=1e-6)


def test_the_gate_holds_a_synapse_that_was_used_and_lets_one_in_use_through():
    used = nn.Parameter(torch.zeros(100))
    optimizer = SelectivePlasticityOptimizer([used], lr=0.1, plasticity_k=10, warmup_steps=10, momentum=0.0)
    pattern = torch.zeros(100)
    pattern[:50] = 1.0
    for _ in range(10):
        used.grad = pattern.clone()
        optimizer.step()
    before = used.detach().clone()
    used.grad = torch.where(pattern > 0, 0.01, 1.0)  # now the other half is used
    optimizer.step()
    moved = (used.detach() - before).abs()
    assert (moved[:50] == 0).all() and (moved[50:] > 0).all()


def test_state_is_two_tensors_a_parameter_as_adam_keeps():
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    optimizer = SelectivePlasticityOptimizer(model.parameters())
    model(torch.randn(4, 20)).sum().backward()
    optimizer.step()
    for p in model.parameters():
        sizes = [value.shape for value in optimizer.state[p].values() if value.numel() > 1]
        assert sizes == [p.shape, p.shape]
        assert all(value.dim() == 0 for value in optimizer.state[p].values() if value.numel() == 1)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("lr", -1e-3, ValueError),
        ("lr", math.nan, ValueError),
        ("lr", "fast", TypeError),
        ("lr", True, TypeError),
        ("trace_decay", 1.0, ValueError),
        ("trace_decay", -0.1, ValueError),
        ("plasticity_k", -1, ValueError),
        ("plasticity_k", math.inf, ValueError),
        ("threshold_percentile", 101, ValueError),
        ("threshold_percentile", -1, ValueError),
        ("warmup_steps", -1, ValueError),
        ("warmup_steps", 1.5, TypeError),
        ("adaptive_threshold", "yes", TypeError),
        ("eps", 0.0, ValueError),
        ("momentum", 1.0, ValueError),
        ("normalisation", "mean", ValueError),
        ("base", "rmsprop", ValueError),
        ("gate_min", 1.5, ValueError),
        ("foreach", 1, TypeError),
        ("on_nonfinite", "warn", ValueError),
    ],
)
def test_wrong_arguments_are_named_with_their_value_and_what_is_allowed(name, value, error):
    parameter = nn.Parameter(torch.zeros(3))
    with pytest.raises(error, match=name) as caught:
        SelectivePlasticityOptimizer([parameter], **{name: value})
    assert repr(value) in str(caught.value)
    with pytest.raises(error, match=name):
        SelectivePlasticityOptimizer([{"params": [parameter], name: value}])


def test_no_parameters_is_an_error():
    with pytest.raises(ValueError, match="params"):
        SelectivePlasticityOptimizer([])


def test_steps_do_not_touch_the_global_random_state():
    parameter = nn.Parameter(torch.zeros(200, 100))
    optimizer = SelectivePlasticityOptimizer([parameter], warmup_steps=1)
    parameter.grad = torch.randn(200, 100)
    before = torch.get_rng_state()
    optimizer.step()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("foreach", [True, False])
def test_a_reset_starts_the_trace_and_the_warm_up_again_without_a_jump(foreach):
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.zeros(20))
    optimizer = SelectivePlasticityOptimizer([parameter], lr=0.01, warmup_steps=5, foreach=foreach)
    for _ in range(60):
        parameter.grad = torch.randn(20)
        optimizer.step()
    optimizer.reset_eligibility()
    assert (optimizer.get_param_eligibility(parameter) == 0).all()
    before = parameter.detach().clone()
    parameter.grad = torch.randn(20)
    optimizer.step()
    moved = (parameter.detach() - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01))  # the first step of an Adam-like rule is lr
    assert optimizer.get_diagnostics()["step_count"] == 61


@pytest.mark.parametrize("adaptive_threshold", [True, False])
def test_after_a_reset_the_threshold_is_measured_as_in_a_new_optimizer(adaptive_threshold):
    generator, options = torch.Generator().manual_seed(0), {"warmup_steps": 5, "adaptive_threshold": adaptive_threshold}
    parameter = nn.Parameter(torch.zeros(20))
    old = SelectivePlasticityOptimizer([parameter], lr=0.01, **options)
    for _ in range(33):
        parameter.grad = torch.randn(20, generator=generator) ** 3
        old.step()
    old.reset_eligibility()
    copied = nn.Parameter(parameter.detach().clone())
    new = SelectivePlasticityOptimizer([copied], lr=0.01, **options)
    for _ in range(60):
        parameter.grad = copied.grad = torch.randn(20, generator=generator) ** 3
        old.step()
        new.step()
    assert torch.equal(old.state[parameter]["threshold"], new.state[copied]["threshold"])
    assert torch.equal(parameter, copied)


@pytest.mark.parametrize("foreach", [True, False])
def test_the_gate_has_its_lower_bound_with_coincidence_as_well(foreach):
    model = nn.Linear(2, 1).double()
    optimizer = coincident(model, lr=0.1, momentum=0, gate_min=0.8, foreach=foreach)
    weight = model.weight.detach().clone()
    learn(model, optimizer, torch.tensor([[3.0, 4.0]]).double())  # without the bound, the gates are 0.64 and 1
    torch.testing.assert_close(model.weight.detach(), weight - 0.1 * torch.tensor([[0.8 * 3, 4.0]]).double())


def test_half_precision_gradients_whose_sum_overflows_are_finite():
    parameter = nn.Parameter(torch.zeros(20, dtype=torch.float16))
    optimizer = SelectivePlasticityOptimizer([parameter], lr=0.01)
    parameter.grad = torch.full((20,), 1e4, dtype=torch.float16)
    optimizer.step()
    assert optimizer.get_diagnostics()["skipped_steps"] == 0 and (parameter < 0).all()


def test_eligibility_of_unknown_or_unused_parameters_is_none():
    used, unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    optimizer = SelectivePlasticityOptimizer([used, unused])
    used.grad = torch.tensor([1.0, -2.0])
    optimizer.step()
    torch.testing.assert_close(optimizer.get_param_eligibility(used), torch.tensor([1.0, 2.0]))
    assert optimizer.get_param_eligibility(unused) is None
    assert optimizer.get_param_eligibility(nn.Parameter(torch.zeros(2))) is None


def test_diagnostics_give_the_gate_of_the_last_step():
    parameter = nn.Parameter(torch.zeros(4))
    optimizer = SelectivePlasticityOptimizer([parameter], plasticity_k=1.0, warmup_steps=0, threshold_percentile=100)
    assert optimizer.get_diagnostics() == {
        "step_count": 0,
        "skipped_steps": 0,
        "eligibility_mean": 0.0,
        "gate_mean": 1.0,
    }
    parameter.grad = torch.tensor([0.0, 1.0, 2.0, 4.0])
    optimizer.step()
    # e_norm = g_norm = |g| / 4, so the gates are 1 - x (1 - x): 1, 13/16, 3/4, 1
    diagnostics = optimizer.get_diagnostics()
    assert diagnostics["eligibility_mean"] == pytest.approx(7 / 4)
    assert diagnostics["gate_mean"] == pytest.approx((1 + 13 / 16 + 3 / 4 + 1) / 4)


def coincident(model, **options):
    options = {"plasticity_k": 0, "warmup_steps": 0, "threshold_percentile": 100, "base": "sgd", **options}
    return SelectivePlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model), **options)


def learn(model, optimizer, x, loss=lambda y: y.sum()):
    optimizer.zero_grad()
    loss(model(x)).backward()
    optimizer.step()


@pytest.mark.parametrize("foreach", [True, False])
def test_coincidence_is_the_product_of_activation_and_gradient(foreach):
    model = nn.Linear(2, 1).double()
    optimizer = coincident(model, lr=0.1, momentum=0, foreach=foreach)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    learn(model, optimizer, torch.tensor([[3.0, 4.0]]).double())
    # g = (3, 4), theta = max |g| = 4, rms(a) = sqrt((9 + 16) / 2): c = (3 / 4 * 3 / 3.5355, 1)
    gate = torch.tensor([[0.75 * 3 / 12.5**0.5, 1.0]]).double()
    torch.testing.assert_close(model.weight.detach(), weight - 0.1 * gate * torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(model.bias.detach(), bias - 0.1)  # a bias has its constant input and its own theta
    assert (optimizer.get_param_gate(model.weight) == 1).all()  # k = 0, and the activity is gone by now


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("layer", ["linear", "convolution"])
def test_the_weights_of_an_input_that_dies_stop_at_once(layer, foreach):
    def moved_by_the_dead_input(with_coincidence):
        torch.manual_seed(0)
        model = nn.Linear(3, 2) if layer == "linear" else nn.Conv2d(3, 2, 3, padding=1)
        x = torch.randn((8, 3) if layer == "linear" else (8, 3, 5, 5))
        optimizer = coincident(model, foreach=foreach, momentum=0.9, lr=0.01)
        if not with_coincidence:
            optimizer.coincidence = None
        for _ in range(5):
            learn(model, optimizer, x)
        before = model.weight.detach().clone()
        x[:, 1] = 0
        learn(model, optimizer, x)
        moved = (model.weight.detach() - before).abs()
        assert (moved[:, [0, 2]] > 0).any()
        return moved[:, 1]

    assert (moved_by_the_dead_input(True) == 0).all()
    assert (moved_by_the_dead_input(False) > 0).all()  # the momentum of earlier steps carries them on


def test_the_weights_of_a_unit_without_an_error_stop_at_once():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = coincident(model, momentum=0.9, lr=0.01)
    x = torch.randn(8, 3)
    for _ in range(5):
        learn(model, optimizer, x)
    before = model.weight.detach().clone()
    learn(model, optimizer, x, loss=lambda y: y[:, 0].sum())
    moved = (model.weight.detach() - before).abs()
    assert (moved[1] == 0).all() and (moved[0] > 0).any()


def test_a_convolution_of_one_pixel_steps_as_the_linear_layer_that_it_is():
    torch.manual_seed(0)
    linear, convolution = nn.Linear(4, 3), nn.Conv2d(4, 3, 1)
    convolution.weight.data.copy_(linear.weight.data[:, :, None, None])
    convolution.bias.data.copy_(linear.bias.data)
    options = {"plasticity_k": 5, "threshold_percentile": 75, "base": "adam"}
    optimizers = coincident(linear, **options), coincident(convolution, **options)
    for _ in range(60):
        x = torch.randn(8, 4) * torch.tensor([0.1, 1, 2, 0])
        learn(linear, optimizers[0], x, lambda y: y.square().sum())
        learn(convolution, optimizers[1], x[:, :, None, None], lambda y: y.square().sum())
    torch.testing.assert_close(convolution.weight.flatten(1), linear.weight)
    torch.testing.assert_close(convolution.bias, linear.bias)


@pytest.mark.parametrize("base", ["adam", "sgd"])
@pytest.mark.parametrize("normalisation", ["percentile", "max"])
def test_with_coincidence_the_fast_form_is_the_reference(base, normalisation):
    models = []
    for foreach in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.LayerNorm(27), nn.ReLU(), nn.Linear(27, 4)).double()
        options = {"plasticity_k": 5, "threshold_percentile": 75, "warmup_steps": 3, "gate_min": 0.01, "lr": 0.01}
        optimizer = coincident(model, foreach=foreach, base=base, normalisation=normalisation, **options)
        for step in range(60):
            x = torch.randn(5, 1, 5, 5).double()
            if step == 30:
                x[0] = math.nan  # is skipped
            learn(model, optimizer, x, lambda y: y.square().mean())
        assert optimizer.get_diagnostics()["skipped_steps"] == 1
        models.append(model)
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q)


def test_coincidence_must_be_a_watcher_and_what_it_did_not_see_is_gated_without_it():
    model = nn.Linear(2, 1)
    with pytest.raises(TypeError, match=r"coincidence must be None or NMDACoincidence\(model\), got a str"):
        SelectivePlasticityOptimizer(model.parameters(), coincidence="on")
    optimizer = coincident(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert (optimizer.get_param_gate(model.weight) == 1).all()
    with pytest.warns(UserWarning, match="did you mean 75?"):
        SelectivePlasticityOptimizer(model.parameters(), threshold_percentile=0.75)


def test_its_groups_hold_its_options_and_nothing_else():
    options = inspect.signature(SelectivePlasticityOptimizer).parameters.keys() - {"params", "coincidence"}
    kept = {"params", "step_count", "skipped_steps", "calibration_start"}
    optimizer = SelectivePlasticityOptimizer([nn.Parameter(torch.zeros(2))])
    assert optimizer.param_groups[0].keys() == options | kept
