"""What PyTorch requires of its own optimizers, tested on every public one, with and without coincidence."""

import copy
import io
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters
from torch.optim import lr_scheduler

from sp import ConsolidatingPlasticityOptimizer, NMDACoincidence, SelectivePlasticityOptimizer
from sp.optim.coincidence import NUMBERS

WARMUP = 8


def selective(model, params=None, **options):
    return SelectivePlasticityOptimizer(params or model.parameters(), **{"lr": 0.01, "warmup_steps": WARMUP, **options})


def consolidating(model, params=None, **options):
    return ConsolidatingPlasticityOptimizer(params or model.parameters(), **{"warmup_steps": WARMUP, **options})


def coincidence(model, params=None, **options):
    return consolidating(model, params, **{"coincidence": NMDACoincidence(model), "refresh_every": 3, **options})


def sketched(model, params=None, **options):
    return coincidence(model, params, **{"rank": 3, **options})


MAKERS = {f.__name__: f for f in (selective, consolidating, coincidence, sketched)}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
diagonal = pytest.mark.parametrize("make", [selective, consolidating], ids=["selective", "consolidating"])


def network(dtype=torch.float32, seed=0, width=12):
    """Watched layers, an unwatched one, and one zero-dimensional parameter."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 4))
    model.register_parameter("gain", nn.Parameter(torch.zeros(())))
    return model.to(dtype)


def loss_of(model, step, size=8):
    generator = torch.Generator(torch.get_default_device()).manual_seed(step)
    x, y = torch.randn(size, 6, generator=generator), torch.randint(4, (size,), generator=generator)
    weight = next(model.parameters())
    return F.cross_entropy(((1 + getattr(model, "gain", 0)) * model(x.to(weight))).float(), y)


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    return model


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(first, second, exact=True):
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(values(first), values(second), **tolerance)


def on_disk(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@every
def test_groups_keep_options_of_their_own_and_can_be_added(make):
    model = network()
    optimizer = make(model, [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[1].parameters()}])
    start = values(model)
    train(model, optimizer, range(3))
    optimizer.add_param_group({"params": [*model[3].parameters(), model.gain], "lr": 0.05})
    late = values(model)
    assert all(torch.equal(late[n], start[n]) for n in start if n[0] in "03g") and not torch.equal(
        late["1.bias"], start["1.bias"]
    )
    train(model, optimizer, range(3, 6))
    moved = {n for n, p in values(model).items() if not torch.equal(p, late[n])}
    assert moved == {"1.weight", "1.bias", "3.weight", "3.bias", "gain"}
    with pytest.raises(ValueError, match="lr"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": -1.0})
    assert len(optimizer.param_groups) == 3


@every
def test_a_tensor_as_learning_rate_is_the_number(make):
    models = []
    for lr in (0.03, torch.tensor(0.03), torch.tensor([0.03])):
        model = network()
        optimizer = make(model, lr=lr)
        train(model, optimizer, range(5))
        optimizer.param_groups[0]["lr"] *= 0.5
        models.append(train(model, optimizer, range(5, 12)))
    same(models[0], models[1], exact=False)
    same(models[0], models[2], exact=False)


@every
def test_a_closure_is_the_loop_written_out(make):
    models = [network(), network()]
    optimizers = [make(model) for model in models]
    for step in range(12):

        def closure(step=step):
            optimizers[1].zero_grad()
            loss = loss_of(models[1], step)
            loss.backward()
            return loss

        train(models[0], optimizers[0], [step])
        assert optimizers[1].step(closure).requires_grad
    same(*models)


@every
def test_maximize_climbs_as_minimizing_the_negative_descends(make):
    models = [network(), network()]
    optimizers = [make(models[0], maximize=True), make(models[1])]
    for step in range(12):
        for model, optimizer, sign in zip(models, optimizers, (1, -1), strict=True):
            optimizer.zero_grad()
            (sign * loss_of(model, step)).backward()
            optimizer.step()
    same(*models, exact=False)
    assert loss_of(models[0], 11) > loss_of(network(), 11)


@every
def test_weight_decay_is_decoupled(make):
    model, decayed = network(), network()
    plain, decaying = make(model, lr=0.01), make(decayed, lr=0.01, weight_decay=0.5)
    train(model, plain, [0])
    train(decayed, decaying, [0])
    start = values(network())
    for name, p in values(decayed).items():  # a watched layer's step is in units of its decayed weights' response
        step, expected = 0.995 * start[name] - p, start[name] - values(model)[name]
        torch.testing.assert_close(step, expected, rtol=0.01, atol=1e-6)
    before = values(decayed)
    decaying.zero_grad()
    (loss_of(decayed, 1) * math.nan).backward()
    decaying.step()  # a step that is skipped does not decay either
    torch.testing.assert_close(values(decayed), before, rtol=0, atol=0)


# One that sets the rate, one that multiplies it, one that moves the momentum as well, and one that is given the loss.
SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.01, total_steps=8, cycle_momentum="momentum" in o.defaults),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
}


@every
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_set_the_options_that_a_step_uses(make, name):
    model, twin, unscheduled = network(), network(), network()
    optimizer, by_hand = make(model), make(twin)
    scheduler, seen = SCHEDULERS[name](optimizer), []
    changed = ["lr", "momentum"] if name == "OneCycleLR" and "momentum" in optimizer.defaults else ["lr"]
    for step in range(8):
        seen.append({option: optimizer.param_groups[0][option] for option in changed})
        by_hand.param_groups[0].update(seen[-1])
        train(model, optimizer, [step])
        train(twin, by_hand, [step])
        scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
    assert all(len({options[option] for options in seen}) > 1 for option in changed)
    same(model, twin)
    train(unscheduled, make(unscheduled), range(8))
    assert not torch.equal(model[0].weight, unscheduled[0].weight)


@every
@pytest.mark.parametrize("options", [{}, {"dtype": torch.float64}, {"width": 1500}], ids=str)  # wide: sampled
@pytest.mark.parametrize("at", [3, 11])
def test_a_checkpoint_on_disk_resumes_bit_by_bit(make, options, at):
    straight, model, resumed = network(**options), network(**options), network(**options, seed=1)
    train(straight, make(straight), range(55))
    optimizer = make(model)
    train(model, optimizer, range(at))
    saved = on_disk({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    resumed.load_state_dict(saved["model"])
    optimizer = make(resumed, lr=0.5)
    optimizer.load_state_dict(saved["optimizer"])
    train(resumed, optimizer, range(at, 55))
    same(straight, resumed)
    assert optimizer.get_diagnostics()["step_count"] == 55


@every
def test_a_loaded_state_lies_where_the_parameters_lie(make):
    model = network()
    optimizer = make(model)
    train(model, optimizer, range(3))
    moved = network().to("meta")
    other = make(moved)
    other.load_state_dict(optimizer.state_dict())
    kept = [(name, value) for state in other.state.values() for name, value in state.items()]
    # The numbers that every step of a watched layer reads stay where they can be read without waiting.
    on_host = NUMBERS if other.coincidence is not None else ()
    assert kept and all((value.device.type == "cpu") == (name in on_host) for name, value in kept)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_checkpoint_goes_on_in_another_precision(make, dtype):
    model = network()
    optimizer = make(model)
    train(model, optimizer, range(12))
    moved = network(seed=1)
    moved.load_state_dict(model.state_dict())
    moved.to(dtype)
    other = make(moved)
    other.load_state_dict(optimizer.state_dict())
    named = [(name, v) for state in other.state.values() for name, v in state.items() if v.is_floating_point()]
    wide = ("inputs_before", "step")  # a sum, and a count
    assert all(v.dtype == torch.float64 for name, v in named if name == "inputs_before")
    assert {v.dtype for name, v in named if name == "step"} <= {
        torch.promote_types(dtype, torch.float32),
        torch.float64,
    }
    narrow = {v.dtype for name, v in named if name not in wide}
    assert narrow <= {dtype, torch.promote_types(dtype, torch.float32)}
    train(model, optimizer, range(12, 15))
    train(moved, other, range(12, 15))
    for name, p in values(moved).items():
        torch.testing.assert_close(p.float(), values(model)[name], rtol=0.05, atol=0.05)


@every
def test_a_checkpoint_from_before_an_option_existed_takes_its_default(make):
    model = network()
    optimizer = make(model)
    train(model, optimizer, range(3))
    old = optimizer.state_dict()
    for name in ("maximize", "weight_decay"):
        del old["param_groups"][0][name]
    other = make(model)
    other.load_state_dict(old)
    train(model, other, range(3, 5))


@every
@pytest.mark.parametrize("kind", ["deepcopy", "pickle"])
def test_a_copy_of_model_and_optimizer_goes_on_by_itself(make, kind):
    model = network()
    optimizer = make(model)
    train(model, optimizer, range(5))
    pair = (model, optimizer)
    twin, other = copy.deepcopy(pair) if kind == "deepcopy" else pickle.loads(pickle.dumps(pair))
    train(model, optimizer, range(5, 14))
    at_five = network()
    train(at_five, make(at_five), range(5))
    same(twin, at_five)
    train(twin, other, range(5, 14))
    same(model, twin)


@every
def test_a_copied_model_that_trains_leaves_the_first_alone(make):
    model, alone = network(), network()
    optimizer, other = make(model), make(alone)
    train(alone, other, range(6))
    for step in range(6):
        optimizer.zero_grad()
        twin = copy.deepcopy(model)
        loss_of(twin, 99).backward()
        loss_of(model, step).backward()
        optimizer.step()
    same(model, alone)


@every
def test_hooks_are_called(make):
    model = network()
    optimizer = make(model)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("save"))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "note": 1})
    train(model, optimizer, range(2))
    state = optimizer.state_dict()
    assert calls == ["pre", "post", "pre", "post", "save"] and state["note"] == 1

    def halve(_, given):
        groups = [{**group, "lr": group["lr"] / 2} for group in given["param_groups"]]
        return {**given, "param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(halve)
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("loaded"))
    rate = optimizer.param_groups[0]["lr"]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == rate / 2 and calls[-1] == "loaded"


@every
def test_parameters_without_gradients_or_elements_and_tied_ones(make):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4))
    model[3].weight = model[2].weight
    model[0].unused, model[0].empty = nn.Linear(3, 3), nn.Parameter(torch.zeros(0, 5))
    optimizer = make(model)
    before = values(model)
    optimizer.step()  # nothing has a gradient yet
    model[0].empty.grad = torch.zeros(0, 5)
    for step in range(4):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    after = values(model)
    assert torch.equal(after["0.unused.weight"], before["0.unused.weight"])
    assert all(not torch.equal(after[name], before[name]) for name in ("0.weight", "2.weight", "2.bias", "3.bias"))
    assert all(p.isfinite().all() for p in after.values())


@diagonal
def test_the_layout_in_memory_does_not_matter(make):
    shapes = [(5, 4, 3, 3), (300, 1000)]
    weights = [
        torch.randn(shape, generator=torch.Generator(torch.get_default_device()).manual_seed(0)) for shape in shapes
    ]
    dense = [nn.Parameter(w.clone()) for w in weights]
    odd = [
        nn.Parameter(weights[0].clone().to(memory_format=torch.channels_last)),
        nn.Parameter(weights[1].t().contiguous().t()),
    ]
    assert not any(p.is_contiguous() for p in odd)
    optimizers = [make(None, dense), make(None, odd)]
    for step in range(15):
        generator = torch.Generator(torch.get_default_device()).manual_seed(step)
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        for optimizer, parameters in zip(optimizers, (dense, odd), strict=True):
            for p, g in zip(parameters, gradients, strict=True):
                p.grad = g.clone()
            optimizer.step()
    torch.testing.assert_close(dense, odd, rtol=1e-5, atol=1e-6)


@every
def test_a_channels_last_network_learns_as_another(make):
    models = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Unflatten(1, (2, 3, 1)), nn.Conv2d(2, 6, (3, 1)), nn.Flatten(), nn.Linear(6, 4))
        model = model.to(memory_format=layout)
        models.append(train(model, make(model), range(10)))
    same(*models, exact=False)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_learn_and_stay_finite(make, dtype):
    losses = []
    for kind in (dtype, torch.float32):
        model = network().to(kind)
        train(model, make(model), [0] * 30)
        assert all(p.dtype == kind and p.isfinite().all() for p in values(model).values())
        losses.append(loss_of(model, 0).item())
    assert losses[0] < loss_of(network(), 0).item() - 0.1
    assert losses[0] == pytest.approx(losses[1], abs=0.1)


@every
def test_a_gradient_scaler_that_skips_changes_nothing(make):
    model, plain = network(), network()
    optimizer, other = make(model), make(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, backoff_factor=0.999)
    for step in range(12):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        scaler.scale(loss * math.inf if step == 5 else loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        before = values(model), copy.deepcopy(optimizer.state_dict()["state"])
        scaler.step(optimizer)
        if step == 5:
            torch.testing.assert_close((values(model), optimizer.state_dict()["state"]), before, rtol=0, atol=0)
        else:
            train(plain, other, [step])
        scaler.update()
    for name, p in values(model).items():
        torch.testing.assert_close(p, values(plain)[name], rtol=1e-2, atol=1e-3)


@every
def test_autocast_trains(make):
    model = network()
    optimizer = make(model)
    start = loss_of(model, 0).item()
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, 0)
        loss.backward()
        optimizer.step()
    assert loss_of(model, 0).item() < start - 0.01


@every
def test_accumulated_and_clipped_gradients_are_those_of_the_whole_batch(make):
    models = [network(torch.float64), network(torch.float64)]
    optimizers = [make(model) for model in models]
    for step in range(12):
        generator = torch.Generator(torch.get_default_device()).manual_seed(step)
        x, y = torch.randn(8, 6, generator=generator).double(), torch.randint(4, (8,), generator=generator)
        for model, optimizer, parts in zip(models, optimizers, (1, 4), strict=True):
            optimizer.zero_grad()
            for part, label in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (F.cross_entropy((1 + model.gain) * model(part), label) / parts).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    same(*models, exact=False)


@every
def test_layers_can_be_frozen_and_thawed(make):
    model = network()
    optimizer = make(model)
    train(model, optimizer, range(3))
    model[0].requires_grad_(False)
    before = values(model)
    train(model, optimizer, range(3, 6))
    moved = {name for name, p in values(model).items() if not torch.equal(p, before[name])}
    assert moved == {"1.weight", "1.bias", "3.weight", "3.bias", "gain"}
    model[0].requires_grad_(True)
    train(model, optimizer, range(6, 8))
    assert not torch.equal(model[0].weight, before["0.weight"])


@every
@pytest.mark.parametrize("kind", ["sparse", "complex"])
def test_gradients_of_another_kind_are_refused_and_change_nothing(make, kind):
    model = network()
    dtype = torch.complex64 if kind == "complex" else torch.float32
    model.odd = nn.Parameter(torch.ones(5, 3, dtype=dtype))
    optimizer = make(model)
    loss_of(model, 0).backward()
    model.odd.grad = torch.ones_like(model.odd) if kind == "complex" else torch.ones(5, 3).to_sparse()
    before = values(model)
    with pytest.raises(TypeError, match=r"\(5, 3\)"):
        optimizer.step()
    torch.testing.assert_close(values(model), before, rtol=0, atol=0)
    assert optimizer.get_diagnostics()["step_count"] == 0 and not optimizer.state


@every
def test_a_gradient_that_is_not_finite_is_skipped_or_raised(make):
    for raising in (False, True):
        model, alone = network(), network()
        optimizer = make(model, on_nonfinite="raise" if raising else "skip")
        train(alone, make(alone), range(8))
        for step in range(8):
            if step == 4:
                optimizer.zero_grad()
                (loss_of(model, step) * math.nan).backward()
                if raising:
                    with pytest.raises(FloatingPointError, match=r"shape .*\(12, 6\).*nothing was changed"):
                        optimizer.step()
                else:
                    optimizer.step()
            train(model, optimizer, [step])
        assert all(p.isfinite().all() for p in values(model).values())
        if raising:
            same(model, alone)
        else:
            assert optimizer.get_diagnostics()["skipped_steps"] == 1


OPTIONS = [
    (selective, {}),
    (selective, {"normalisation": "max", "foreach": False}),
    (selective, {"base": "sgd", "adaptive_threshold": False, "gate_min": 0.1, "weight_decay": 0.1, "maximize": True}),
    (selective, {"coincidence": True}),
    (consolidating, {"weight_decay": 0.01}),
    (coincidence, {}),
]


def compiled_and_not(make, options, backend, steps=150):
    """Train two networks alike, one with the compiled step; return the number of graphs known after each step."""
    torch._dynamo.reset()
    counters.clear()
    models, graphs = [network(), network()], []
    optimizers = [
        make(m, **({**options, "coincidence": NMDACoincidence(m)} if "coincidence" in options else options))
        for m in models
    ]
    calls = [optimizers[0].step, torch.compile(optimizers[1].step, backend=backend)]
    schedulers = [lr_scheduler.ExponentialLR(optimizer, 0.99) for optimizer in optimizers]
    for step in range(steps):
        for model, optimizer, call, scheduler in zip(models, optimizers, calls, schedulers, strict=True):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            call()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the scheduler does not recognise a compiled step
                scheduler.step()
        graphs.append(counters["stats"]["unique_graphs"])
    same(*models, exact=False)
    assert not torch.equal(models[0][0].weight, network()[0].weight)
    return graphs


@pytest.mark.parametrize(("make", "options"), OPTIONS)
def test_a_compiled_step_is_the_step_and_is_compiled_a_few_times_in_all(make, options):
    graphs = compiled_and_not(make, options, "aot_eager")
    assert 0 < graphs[-1] <= 4
    assert len({*graphs}) <= 3  # the usual step, and the one that measures a threshold


@diagonal
def test_the_usual_compiler_makes_the_step(make):
    compiled_and_not(make, {}, "inductor", steps=WARMUP + 15)


@diagonal
def test_a_step_on_an_accelerator_waits_for_nothing(make):
    # Tensors without values: anything that asks for one, and so would wait for the device, raises.
    model = network().to("meta")
    optimizer = make(model, on_nonfinite="ignore")
    for _ in range(WARMUP + 45):
        optimizer.zero_grad()
        output = (1 + model.gain) * model(torch.randn(8, 6, device="meta"))
        F.cross_entropy(output, torch.zeros(8, dtype=torch.int64, device="meta")).backward()
        optimizer.step()
    assert all(v.device.type == "meta" for state in optimizer.state.values() for v in state.values())
    with pytest.raises((RuntimeError, NotImplementedError)):
        optimizer.get_diagnostics()
