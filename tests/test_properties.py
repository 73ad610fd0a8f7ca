"""What holds for every shape, precision and setting of the optimizers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sp import ConsolidatingPlasticityOptimizer, NMDACoincidence, SelectivePlasticityOptimizer

SHAPES = st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=3)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.05}
SELECTIVE = st.fixed_dictionaries(
    {
        "lr": st.floats(1e-4, 0.1),
        "trace_decay": st.sampled_from([0.0, 0.9, 0.99, 0.999]),
        "plasticity_k": st.floats(0, 20),
        "threshold_percentile": st.floats(0, 100),
        "warmup_steps": st.integers(0, 12),
        "adaptive_threshold": st.booleans(),
        "momentum": st.sampled_from([0.0, 0.9]),
        "normalisation": st.sampled_from(["percentile", "max"]),
        "base": st.sampled_from(["adam", "sgd"]),
        "gate_min": st.floats(0, 1),
        "foreach": st.booleans(),
    }
)
CONSOLIDATING = st.fixed_dictionaries(
    {
        "lr": st.floats(1e-4, 0.3),
        "threshold_quantile": st.floats(0.05, 0.95),
        "warmup_steps": st.integers(1, 20),
        "absorber": st.floats(1, 3),
        "foreach": st.booleans(),
    }
)


def gradients(shapes, dtype, seed):
    """Heavy-tailed, with zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) ** 3 for shape in shapes]
    return [(g * (torch.rand(g.shape, generator=generator) > 0.2)).clamp(-50, 50).to(dtype) for g in made]


def steps(optimizer, parameters, shapes, dtype, seeds):
    for seed in seeds:
        for p, g in zip(parameters, gradients(shapes, dtype, seed), strict=True):
            p.grad = g
        optimizer.step()


@pytest.mark.filterwarnings("ignore:in torch.bfloat16, a trace")
@settings(max_examples=60, deadline=None)
@given(SELECTIVE, SHAPES, DTYPES, st.integers(0, 10**6))
def test_selective_traces_gate_and_update_keep_their_bounds(options, shapes, dtype, seed):
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    optimizer = SelectivePlasticityOptimizer(parameters, **options)
    steps(optimizer, parameters, shapes, dtype, range(seed, seed + 15))
    free, loose = copy.deepcopy((parameters, optimizer))
    loose.param_groups[0]["plasticity_k"] = 0.0
    before = [(p.detach().clone(), optimizer.state[p]["eligibility"].clone()) for p in parameters]
    for pair in ((optimizer, parameters), (loose, free)):
        steps(*pair, shapes, dtype, [seed + 99])
    rounding = ROUNDING[dtype]
    for p, q, (w, old) in zip(parameters, free, before, strict=True):
        trace, magnitude = optimizer.state[p]["eligibility"].double(), p.grad.abs().double()
        low, high = torch.minimum(old.double(), magnitude), torch.maximum(old.double(), magnitude)
        slack = rounding * (high + 1e-6)
        assert (trace >= low - slack).all() and (trace <= high + slack).all()
        gated, ungated = (p.detach() - w).double().abs(), (q.detach() - w).double().abs()
        slack = rounding * (ungated + w.double().abs() + 1e-6)
        assert (gated <= ungated + slack).all() and (gated >= options["gate_min"] * ungated - slack).all()
    smallest = options["gate_min"] - max(torch.finfo(dtype).eps, 1e-6)  # the gate itself is rounded
    assert smallest <= optimizer.get_diagnostics()["gate_mean"] <= 1


@settings(max_examples=60, deadline=None)
@given(CONSOLIDATING, SHAPES, DTYPES, st.integers(0, 10**6))
def test_consolidation_only_grows_and_its_gate_only_holds_back(options, shapes, dtype, seed):
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    optimizer = ConsolidatingPlasticityOptimizer(parameters, **options)
    steps(optimizer, parameters, shapes, dtype, range(seed, seed + 25))
    before = [(p.detach().clone(), optimizer.state[p]["consolidated"].clone()) for p in parameters]
    steps(optimizer, parameters, shapes, dtype, [seed + 99])
    threshold = optimizer.param_groups[0]["shared"]["threshold"]
    for p, (w, old) in zip(parameters, before, strict=True):
        assert (optimizer.state[p]["consolidated"] >= old).all()
        moved = (p.detach() - w).double().abs()
        ungated = options["lr"] * p.grad.double().abs() / threshold.double().sqrt()
        assert (moved <= ungated * (1 + ROUNDING[dtype]) + ROUNDING[dtype] * (w.double().abs() + 1e-6)).all()
    assert 0 < optimizer.get_diagnostics()["gate_mean"] <= 1


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from(["selective", "consolidating", "coincidence"]),  # a sketch gives each unit its own sign and sum
    st.integers(2, 12),
    st.integers(0, 10**6),
)
def test_permuting_the_units_of_a_layer_permutes_the_result(kind, width, seed):
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(width, generator=generator)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)).double()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight.copy_(model[0].weight[order])
        twin[0].bias.copy_(model[0].bias[order])
        twin[2].weight.copy_(model[2].weight[:, order])
    for network in (model, twin):
        options = {"warmup_steps": 4}
        if kind == "coincidence":
            options["coincidence"] = NMDACoincidence(network)
        rule = SelectivePlasticityOptimizer if kind == "selective" else ConsolidatingPlasticityOptimizer
        optimizer = rule(network.parameters(), lr=0.01, **options)
        data = torch.Generator().manual_seed(seed + 1)
        for _ in range(8):
            x, y = torch.randn(6, 5, generator=data).double(), torch.randint(3, (6,), generator=data)
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
    tolerance = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(twin[0].weight, model[0].weight[order], **tolerance)
    torch.testing.assert_close(twin[2].weight, model[2].weight[:, order], **tolerance)
