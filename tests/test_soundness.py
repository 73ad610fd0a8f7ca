"""What a training run of several days meets: odd gradients, checkpoints of every kind, weights that move in memory."""

import copy
import io
import math

import pytest
import torch
from torch import nn

from sp import ConsolidatingPlasticityOptimizer, SelectivePlasticityOptimizer
from tests.test_conformance import (
    coincidence,
    consolidating,
    diagonal,
    every,
    loss_of,
    network,
    same,
    selective,
    train,
    values,
)


@pytest.mark.parametrize("on_nonfinite", ["skip", "ignore"])
def test_steps_without_any_gradient_do_not_count(on_nonfinite):
    model, alone = network(), network()
    optimizer = consolidating(model, on_nonfinite=on_nonfinite)
    for step in (0, 5):
        train(model, optimizer, range(step, step + 5))
        before = values(model)
        for _ in range(100):
            optimizer.zero_grad()
            (0 * loss_of(model, 0)).backward()
            optimizer.step()
        torch.testing.assert_close(values(model), before, rtol=0, atol=0)
    train(model, optimizer, range(10, 30))
    train(alone, consolidating(alone), range(30))
    same(model, alone)


@diagonal
@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("exponent", [-30, -20, 15, 18, 19, 20, 21, 30, 38])
def test_gradients_of_any_size_leave_weights_finite(make, foreach, exponent):
    parameters = [nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(3))]
    optimizer = make(None, parameters, foreach=foreach)
    generator = torch.Generator().manual_seed(0)
    for scale in (10.0**exponent, 10.0**exponent, 1.0, 1.0):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator) * scale
        optimizer.step()
        assert all(p.isfinite().all() for p in parameters)


def test_a_gradient_whose_squared_norm_overflows_is_skipped():
    parameter = nn.Parameter(torch.ones(3))
    optimizer = ConsolidatingPlasticityOptimizer([parameter])
    parameter.grad = torch.full((3,), 1e21)
    optimizer.step()
    assert (parameter == 1).all() and optimizer.get_diagnostics()["skipped_steps"] == 1
    optimizer.param_groups[0]["on_nonfinite"] = "raise"
    with pytest.raises(FloatingPointError, match="nothing was changed"):
        optimizer.step()


@every
@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_skipped_step_is_as_if_it_had_never_been(make, everywhere, foreach):
    model, alone = network(), network()
    optimizer, other = make(model, foreach=foreach), make(alone, foreach=foreach)
    for step in range(60):
        if step in (0, 7, 49):
            optimizer.zero_grad()
            (loss_of(model, step) * (math.nan if everywhere else 1)).backward()
            model[1].bias.grad[1] = math.inf
            optimizer.step()
        train(model, optimizer, [step])
        train(alone, other, [step])
    same(model, alone)
    counted = optimizer.get_diagnostics()
    assert (counted["step_count"], counted["skipped_steps"]) == (60, 3)


@every
def test_a_skipped_step_leaves_no_activity_behind(make):
    ends = []
    for broken in (True, False):
        model = network()
        optimizer = make(model)
        for step in range(12):
            for size in (20, 8) if broken and step == 5 else (8,):
                model.zero_grad()  # the watcher does not see this
                (loss_of(model, step, size) * (math.nan if size == 20 else 1)).backward()
                optimizer.step()
        ends.append(model)
    same(*ends)


@every
def test_who_ignores_what_is_not_finite_learns_the_same_and_is_not_protected(make):
    model, asked = network(), network()
    optimizer = make(model, on_nonfinite="ignore")
    train(model, optimizer, range(15))
    train(asked, make(asked), range(15))
    same(model, asked)
    optimizer.zero_grad()
    (loss_of(model, 15) * math.nan).backward()
    optimizer.step()
    assert model[1].weight.isnan().any() and optimizer.get_diagnostics()["skipped_steps"] == 0


@every
def test_a_look_makes_no_state(make):
    model = network()
    optimizer = make(model)
    optimizer.step()
    for p in [*model.parameters(), nn.Parameter(torch.zeros(2))]:
        assert optimizer.get_param_eligibility(p) is None and optimizer.get_param_gate(p) is None
    optimizer.get_diagnostics()
    optimizer.zero_grad()
    assert len(optimizer.state) == 0
    train(model, optimizer, range(2))
    assert all(len(state) for state in optimizer.state.values())


def changed(state_dict, change):
    state_dict = copy.deepcopy(state_dict)
    change(state_dict)
    return state_dict


WEIGHT = 1  # number of the first layer's weight, which is watched where there is a watcher


def setting(name, value):
    return lambda state_dict: state_dict["state"][WEIGHT].update({name: value})


def of_another_shape(state_dict):
    state = state_dict["state"][WEIGHT]
    state.update({name: torch.zeros(7, 6) for name, value in state.items() if value.dim()})


def renamed(state_dict):
    state = state_dict["state"][WEIGHT]
    state.update(other=state.popitem()[1])


@every
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("exp_avg", torch.zeros(12, 6)), "has 'exp_avg', which this optimizer does not know"),
        (of_another_shape, r"of shape \(7, 6\) for a parameter of shape \(12, 6\)"),
        (lambda state: state["state"].update({99: {}}), "a state for 99, which is not one of its parameters"),
        (lambda state: state["state"].update({"note": {}}), "a state for 'note'"),
        (renamed, r"lacks '(momentum|consolidated|errors_\w+)'"),
        (lambda state: state.update(state=None), r"must be what optimizer.state_dict\(\) returned"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(make, change, message):
    model = network()
    optimizer = make(model)
    train(model, optimizer, range(3))
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(changed(before, change))
    assert str(optimizer.state_dict()) == str(before)


@pytest.mark.parametrize("step", [3, None, "three", torch.zeros(2)])
def test_a_step_count_that_is_no_number_in_a_tensor_is_refused(step):
    model = network()
    optimizer = selective(model)
    train(model, optimizer, range(3))
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="has 'step' of"):
        optimizer.load_state_dict(changed(before, setting("step", step)))
    assert str(optimizer.state_dict()) == str(before)


@diagonal
def test_a_checkpoint_takes_no_more_room_on_disk_than_its_tensors(make):
    model = nn.Sequential(*(nn.Linear(100, 100) for _ in range(6)))
    optimizer = make(model)
    model(torch.randn(4, 100)).sum().backward()
    optimizer.step()
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    held = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    assert buffer.tell() < 1.1 * held + 20_000


@diagonal
def test_where_state_and_weights_lie_does_not_matter(make):
    models = [network(), network(), network()]
    optimizers = [make(model) for model in models]
    for step in range(30):
        for model, optimizer in zip(models, optimizers, strict=True):
            train(model, optimizer, [step])
        for state in optimizers[1].state.values():  # as after a move to another device and back
            state.update({name: value.clone() for name, value in state.items()})
        for p in models[2].parameters():
            p.data = p.data.clone()
    same(models[0], models[1])
    same(models[0], models[2])


@diagonal
def test_parameters_that_join_and_leave_step_as_in_the_reference(make):
    ends = []
    for foreach in (True, False):
        model = network(torch.float64)
        optimizer = make(model, foreach=foreach)
        generator = torch.Generator().manual_seed(0)
        for step in range(60):
            for i, p in enumerate(model.parameters()):
                here = (step + i) % 5 < 3 if step > 20 else i < 3
                g = torch.randn(p.shape, generator=generator, dtype=p.dtype)
                p.grad = g if here else None
            optimizer.step()
        ends.append(model)
    torch.testing.assert_close(values(ends[0]), values(ends[1]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [SelectivePlasticityOptimizer, ConsolidatingPlasticityOptimizer])
def test_the_fast_form_is_the_reference_over_several_blocks(kind, dtype, monkeypatch):
    monkeypatch.setattr("sp.optim.fast.BLOCK", 64)
    shapes, ends = ((70, 3), (1, 200), (), (9,), (4, 5, 6)), []
    for foreach in (True, False):
        parameters = [nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in shapes]
        optimizer = kind(parameters, lr=0.01, warmup_steps=12, foreach=foreach)
        generator = torch.Generator().manual_seed(0)
        for _ in range(60):
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=generator).to(dtype)
            optimizer.step()
        ends.append(parameters)
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-4}.get(dtype, 0.05)
    torch.testing.assert_close(*ends, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("make", [consolidating, coincidence])
@pytest.mark.parametrize("factor", [1e3, 1e6])
def test_one_odd_first_batch_is_as_if_it_had_not_been(make, factor):
    """The scale of gradients is measured in the first steps, and would remain a thousand times too large for good."""
    moved = []
    for first in (1.0, factor):
        model = network()
        optimizer = make(model)
        for step in range(60):
            optimizer.zero_grad()
            (loss_of(model, step) * (first if step == 0 else 1)).backward()
            optimizer.step()
            if step == 0:
                start = values(model)
        moved.append(sum(float((p.detach() - start[name]).norm()) for name, p in model.named_parameters()))
    assert moved[1] == pytest.approx(moved[0], rel=0.3)


def test_what_all_parameters_share_may_be_loaded_as_plain_numbers():
    model = network()
    optimizer = consolidating(model)
    train(model, optimizer, range(12))
    saved = copy.deepcopy(optimizer.state_dict())
    shared = saved["param_groups"][0]["shared"]
    shared.update({name: float(value) for name, value in shared.items()})
    resumed = network()
    resumed.load_state_dict(model.state_dict())
    other = consolidating(resumed)
    other.load_state_dict(saved)
    torch.testing.assert_close(
        other.get_param_gate(resumed[0].weight), optimizer.get_param_gate(model[0].weight), rtol=0, atol=0
    )
    train(model, optimizer, range(12, 20))
    train(resumed, other, range(12, 20))
    same(model, resumed)


def test_a_watched_copy_that_data_parallel_makes_is_refused():
    model = network()
    optimizer = coincidence(model)
    replica = model[0]._replicate_for_data_parallel()  # as nn.DataParallel does for each of several devices
    replica.weight, replica.bias = model[0].weight, model[0].bias
    with pytest.raises(RuntimeError, match=r"use torch\.nn\.parallel\.DistributedDataParallel"):
        replica(torch.randn(2, 6))
    train(model, optimizer, range(2))


@diagonal
@pytest.mark.parametrize("others", ["skip", "raise"])
def test_one_group_that_asks_is_enough(make, others):
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    groups = [{"params": [p], "on_nonfinite": how} for p, how in zip(parameters, ("ignore", others), strict=True)]
    optimizer = make(None, groups)
    for p in parameters:
        p.grad = torch.tensor([1.0, math.nan, 1.0])
    if others == "raise":
        with pytest.raises(FloatingPointError, match="nothing was changed"):
            optimizer.step()
    else:
        optimizer.step()
        assert optimizer.get_diagnostics()["skipped_steps"] == 1
    assert all((p == 1).all() for p in parameters)


@diagonal
def test_steps_of_a_group_that_joined_late_are_counted_from_the_first(make):
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = make(None, parameters[:1])
    for step in range(5):
        if step == 3:
            optimizer.add_param_group({"params": parameters[1:]})
        for p in parameters:
            p.grad = torch.ones(3)
        optimizer.step()
    assert optimizer.get_diagnostics()["step_count"] == 5
