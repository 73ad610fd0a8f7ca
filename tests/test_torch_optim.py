"""PyTorch's tests of its own optimizers (its `test/test_optim.py`), applied to every form of ours.

They run over `OptimizerInfo` records, as PyTorch's own do. Where PyTorch steps bare tensors, these step the same loss
through `nn.Linear`, so that a watcher can see the layer. These of PyTorch's tests are left out:

| test | why |
|---|---|
| forloop_goes_right_direction_multigpu, mixed_device_dtype | need two GPUs |
| state_dict_with_cuda_params, cpu_load_state_dict | need a GPU |
| peak_memory_foreach | reads the statistics of CUDA's allocator |
| foreach_large_tensor | needs 72 GB |
| fused_* (all), grad_scaling_autocast_fused_optimizers | there is no fused form; a scaler: `test_conformance` |
| complex, complex_2d | complex gradients are refused, see `test_errors` |
| rosenbrock_sparse | sparse gradients are refused, see `test_errors`; the dense problem is tried below |
| differentiable (TestDifferentiableOptimizer) | there is no such option |
| capturable inputs, cudagraphs | there is no such option: `test_conformance` checks which steps wait for no device |
| second_order_optims_return_consistent_types; LBFGS, Muon and SparseAdam's own | of those optimizers alone |
| TestLRScheduler, TestSWAUtils | are about schedulers and averages; a scheduler's options: `test_conformance` |

A step that a gradient scaler skips, a state dict in another dtype, a closure and `maximize` as the negative loss are in
`test_conformance`, which asks more of them.
"""

import contextlib
import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing import assert_close

from sp import ConsolidatingPlasticityOptimizer, NMDACoincidence, SelectivePlasticityOptimizer

# Importing them stops the whole process from setting flags of torch.backends, as Lightning does in other tests.
with mock.patch("torch.backends.disable_global_flags"):
    from torch.testing._internal.common_optimizers import (
        ErrorOptimizerInput,
        OptimizerErrorEnum,
        OptimizerInfo,
        OptimizerInput,
        get_error_inputs_for_all_optims,
        optim_db,
    )
    from torch.testing._internal.common_utils import TestCase

EXACT = {"rtol": 0, "atol": 0}
assert_equal = TestCase().assertEqual  # as PyTorch compares: state dicts and all that is in them
# PyTorch tests SGD with the most schedulers.
SCHEDULES = next(info for info in optim_db if info.optim_cls is torch.optim.SGD).scheduler_inputs


def option_sets(**own: dict[str, Any]) -> Callable[..., list[OptimizerInput]]:
    """Makes the inputs of a form: the options that PyTorch gives to all optimizers, and sets of its own."""
    sets = {
        "default": {},
        "lr": {"lr": 0.01},
        "tensor lr": {"lr": torch.tensor(0.001)},
        "weight decay": {"weight_decay": 0.1},
        "maximize": {"maximize": True},
        "maximize, weight decay": {"maximize": True, "weight_decay": 0.1},
        **own,
    }
    return lambda device: [OptimizerInput(None, copy.deepcopy(kwargs), desc) for desc, kwargs in sets.items()]


def errors(device: str, dtype: torch.dtype) -> list[ErrorOptimizerInput]:
    """What PyTorch has every optimizer refuse, and what ours refuse in addition."""
    shared = get_error_inputs_for_all_optims(device, dtype)
    for error in shared:
        if "lr" in error.optimizer_error_input.kwargs:  # ours say which value is wrong, and what is allowed
            error.error_type, error.error_regex = TypeError, r"lr must be a number in \[0, inf\), got tensor"
    wrong = {
        "lr must be a finite number": {"lr": -1.0},
        "weight_decay must be a finite number": {"weight_decay": -1.0},
        "on_nonfinite must be one of": {"on_nonfinite": "hope"},
    }
    own = [ErrorOptimizerInput(OptimizerInput(None, k), error_type=ValueError, error_regex=r) for r, k in wrong.items()]
    for gradient in (torch.ones(2, 3, dtype=torch.complex64), torch.ones(2, 3).to_sparse()):
        p = Parameter(torch.ones(2, 3, dtype=gradient.dtype))
        p.grad = gradient
        how = {
            "error_on": OptimizerErrorEnum.STEP_ERROR,
            "error_type": TypeError,
            "error_regex": "dense real gradients",
        }
        own.append(ErrorOptimizerInput(OptimizerInput([p], {}), **how))
    return [*shared, *own]


class Form(OptimizerInfo):
    """A rule of ours, as PyTorch's tests describe an optimizer; ``watched``: with a watcher of the model."""

    def __init__(self, name: str, optim_cls: type, watched: bool = False, **own: dict[str, Any]):
        super().__init__(
            optim_cls,
            optim_inputs_func=option_sets(**own),
            optim_error_inputs_func=errors,
            scheduler_inputs=SCHEDULES,
            supported_impls=("foreach",),
            not_og_supported_flags=("foreach", "maximize", "weight_decay", "on_nonfinite"),
            supports_complex=False,
        )
        self.id, self.watched = name, watched

    def make(self, model: nn.Module, params: Any = None, **kwargs: Any) -> torch.optim.Optimizer:
        if self.watched:
            kwargs["coincidence"] = NMDACoincidence(model)
        return self.optim_cls(model.parameters() if params is None else params, **kwargs)


FORMS = [
    Form(
        "published",
        SelectivePlasticityOptimizer,
        gated={"warmup_steps": 3, "lr": 0.01},
        fixed={"warmup_steps": 3, "adaptive_threshold": False, "momentum": 0.0, "gate_min": 0.1},
        sgd={"warmup_steps": 3, "base": "sgd"},
        max={"warmup_steps": 3, "normalisation": "max"},
    ),
    Form(
        "diagonal",
        ConsolidatingPlasticityOptimizer,
        short={"warmup_steps": 3, "threshold_quantile": 0.5},
        absorber={"absorber": 2.0},
    ),
    Form("coincidence", ConsolidatingPlasticityOptimizer, watched=True, looks={"refresh_every": 3}, sketch={"rank": 1}),
]
IMPLEMENTATIONS = {True: "foreach", False: "loop"}
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.id)


@dataclass(frozen=True)
class Case:
    """A form with one of its option sets and an implementation."""

    form: Form
    desc: str
    foreach: bool

    @property
    def kwargs(self) -> dict[str, Any]:
        """A new copy of the options, because schedulers change a rate that is a tensor."""
        found = next(i for i in self.form.optim_inputs_func(device=torch.get_default_device()) if i.desc == self.desc)
        return {**found.kwargs, "foreach": self.foreach}

    def make(self, model: nn.Module, params: Any = None, **kwargs: Any) -> torch.optim.Optimizer:
        return self.form.make(model, params, **{**self.kwargs, **kwargs})


def cases(*foreach: bool):
    """Parametrize over all cases."""
    found = [
        Case(f, i.desc, e)
        for f in FORMS
        for i in f.optim_inputs_func(device=torch.get_default_device())
        for e in foreach
    ]
    return pytest.mark.parametrize("case", found, ids=lambda c: f"{c.form.id}-{c.desc}-{IMPLEMENTATIONS[c.foreach]}")


class Squares(nn.Module):
    """The loss of most of PyTorch's tests: the squared length of ``weight @ x + bias``."""

    def __init__(self, contiguous: bool = True):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.x = nn.Linear(5, 10), torch.randn(5)
        weight, bias = torch.randn(10, 5, 2)[..., 0], torch.randn(10, 2)[..., 0]
        self.layer.weight = Parameter(weight.contiguous() if contiguous else weight)
        self.layer.bias = Parameter(bias.contiguous() if contiguous else bias)

    def forward(self) -> Tensor:
        return self.layer(self.x).pow(2).sum()


def closure_of(model, optimizer, loss=None):
    def closure():
        optimizer.zero_grad()
        value = model() if loss is None else loss()
        value.backward()
        return value

    return closure


def train(model, optimizer, steps, schedulers=()):
    """Steps as PyTorch's tests make them; returns the loss before them and after them."""
    before = model().item()
    for _ in range(steps):
        loss = optimizer.step(closure_of(model, optimizer))
        for scheduler in schedulers:
            scheduler.step(*([loss] if isinstance(scheduler, ReduceLROnPlateau) else []))
    return before, model().item()


def right_direction(case, before, after):
    assert after > before if case.kwargs.get("maximize") else after < before


def values(model):
    return [p.detach().clone() for p in model.parameters()]


# The algorithms


@forms
def test_optim_infos_do_not_specify_global_cliquey_kwargs(form):
    for given in form.optim_inputs_func(device=torch.get_default_device()):
        assert not {"foreach", "fused", "differentiable"} & set(given.kwargs)


def holder(params) -> nn.Sequential:
    """A network of the given parameters, for a watcher: one layer for each."""
    groups = [m["params"] if isinstance(m, dict) else m for m in (params if isinstance(params, list) else [params])]
    members = [m for group in groups for m in (group if isinstance(group, list) else [group])]
    weights = [m[1] if isinstance(m, tuple) else m for m in members]
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in weights))
    for layer, weight in zip(model, weights, strict=True):
        layer.weight = weight
    return model


@forms
def test_errors(form):
    for error in form.optim_error_inputs_func(device=torch.get_default_device(), dtype=torch.float32):
        given = error.optimizer_error_input
        params = [Parameter(torch.ones(2, 3))] if given.params is None else given.params
        expected = pytest.warns if issubclass(error.error_type, Warning) else pytest.raises
        if error.error_on == OptimizerErrorEnum.STEP_ERROR:
            optimizer = form.make(holder(params), params, **given.kwargs)
            with expected(error.error_type, match=error.error_regex):
                optimizer.step()
        else:
            with expected(error.error_type, match=error.error_regex):
                form.make(holder(params), params, **given.kwargs)


@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
@cases(False)
def test_forloop_goes_right_direction(case, contiguous):
    for constructors in [[], *SCHEDULES]:
        model = Squares(contiguous)
        optimizer = case.make(model)
        right_direction(case, *train(model, optimizer, 20, [make(optimizer) for make in constructors]))


@forms
def test_param_group_with_lrscheduler_goes_right_direction(form):
    for constructors in form.scheduler_inputs:
        model = Squares()
        optimizer = form.make(model, [{"params": [model.layer.weight]}, {"params": [model.layer.bias], "lr": 0.01}])
        before, after = train(model, optimizer, 20, [make(optimizer) for make in constructors])
        assert after < before


@cases(False, True)
def test_tensor_lr(case):
    models = []
    for lr in (1e-3, torch.tensor(1e-3)):
        model = Squares()
        train(model, case.make(model, lr=lr), 5)
        models.append(values(model))
    assert_close(*models)


@forms
def test_rosenbrock_comes_nearer(form):
    model = nn.Linear(1, 2, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, 1.5)
    optimizer = form.make(model, lr=0.02)

    def rosenbrock():
        x, y = model(torch.ones(1, 1, dtype=torch.float64)).flatten()
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2

    start = rosenbrock().item()
    for _ in range(900):
        optimizer.step(closure_of(model, optimizer, rosenbrock))
    assert rosenbrock() < start / 10 and (model.weight - 1).norm() < 0.5**0.5


@cases(True)
def test_param_groups_weight_decay(case):
    model = Squares()
    groups = [
        {"params": [model.layer.weight], **case.kwargs},
        {"params": [model.layer.bias], **case.kwargs, "weight_decay": 0.0},
    ]
    right_direction(case, *train(model, case.form.make(model, groups), 20))


@cases(True)
def test_param_groups_lr(case):
    model, irrelevant = Squares(), Parameter(torch.randn(2))
    before, first = irrelevant.detach().clone(), model().item()
    groups = [{"params": list(model.parameters()), "lr": 1e-3, **case.kwargs}, {"params": [irrelevant]}]
    optimizer = case.make(model, groups, lr=1e-28)
    for _ in range(20):
        optimizer.step(closure_of(model, optimizer, lambda: model() + irrelevant.sum()))
    right_direction(case, first, model().item())
    assert_close(irrelevant.detach(), before, **EXACT)


@cases(True)
def test_step_is_noop_when_params_have_no_grad(case):
    model = Squares()
    before, optimizer = values(model), case.make(model)
    model.requires_grad_(False)
    assert optimizer.step(lambda: torch.tensor([1.0])) == 1
    assert_close(values(model), before, **EXACT)


@cases(False, True)
def test_step_is_noop_for_zero_grads(case):
    model = Squares()
    before = values(model)
    optimizer = case.make(model, weight_decay=0.0)
    for _ in range(4):
        optimizer.step(closure_of(model, optimizer, lambda: 0 * model()))
    assert_close(values(model), before, **EXACT)


@cases(True)
def test_optimizer_can_be_printed(case):
    assert case.form.optim_cls.__name__ in repr(case.make(Squares()))


# Implementations


def sigmoids(dtype):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1), nn.Sigmoid()).to(dtype)
    model.register_parameter("scalar", Parameter(torch.rand((), dtype=dtype)))
    model.register_parameter("empty", Parameter(torch.empty(0, 3, dtype=dtype)))
    return model


@pytest.fixture(params=[torch.float32, torch.float64, torch.float16], ids=str)
def default_dtype(request):
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(torch.float32)


@cases(False)
def test_foreach_matches_forloop(case, default_dtype):
    x = torch.arange(1, 7, dtype=torch.float64).reshape(3, 2) / 10
    models = [sigmoids(torch.float64) for _ in range(2)]
    optimizers = [case.make(model, foreach=foreach) for model, foreach in zip(models, (False, True), strict=True)]
    for step in range(7):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model[2].requires_grad_(step not in (3, 4))
            if step != 2:
                (model(x).sum() + model.scalar.square() + model.empty.sum()).backward()
            optimizer.step()
        for parameters in zip(*(model.parameters() for model in models), strict=True):
            states = [optimizer.state[p] for optimizer, p in zip(optimizers, parameters, strict=True)]
            assert_close(*parameters)
            assert_close(*states)
            with torch.no_grad():  # so that differences do not add up
                parameters[1].copy_(parameters[0])
                for name, value in states[0].items():
                    states[1][name].copy_(value)
                    assert value.dtype == torch.float64 or value.dim() == 0 or not value.is_floating_point()


@forms
def test_defaults_changed_to_foreach_and_a_step_is_profiled_once(form):
    found = []
    for kwargs in ({}, {"foreach": True}, {"foreach": False}):
        model = sigmoids(torch.float32)
        optimizer = form.make(model, **kwargs)
        (model(torch.ones(3, 2)).sum() + model.scalar).backward()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            optimizer.step()
        ran = {event.key: event.count for event in profile.key_averages()}
        found.append(sum(count for name, count in ran.items() if name.startswith("aten::_foreach")))
        assert [count for name, count in ran.items() if name.startswith("Optimizer.step#")] == [1]
    assert found[0] == found[1] > found[2]


@forms
def test_compiled_step_is_the_plain_one(form):
    torch.compiler.reset()
    models = [sigmoids(torch.float32) for _ in range(2)]
    optimizers = [form.make(model) for model in models]
    # Traced and differentiated, but without generated code, which takes minutes over all forms.
    steps = [optimizers[0].step, torch.compile(optimizers[1].step, backend="aot_eager")]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(3):
            for model, optimizer, step in zip(models, optimizers, steps, strict=True):
                optimizer.zero_grad()
                (model(torch.ones(3, 2)).sum() + model.scalar.square()).backward()
                step()
    assert_close(*map(values, models))
    assert any(event.key.startswith("Torch-Compiled Region") for event in profile.key_averages())


# State dicts and hooks


def named(model, yes):
    return model.named_parameters() if yes else model.parameters()


NAMES = pytest.mark.parametrize("names", [(a, b) for a in (False, True) for b in (False, True)], ids=str)


@NAMES
@cases(True)
def test_state_dict_deterministic(case, names):
    models = [Squares(), Squares()]
    optimizer = case.make(models[0], named(models[0], names[0]))
    train(models[0], optimizer, 10)
    models[1].load_state_dict(models[0].state_dict())
    other = case.make(models[1], named(models[1], names[1]))
    saved = optimizer.state_dict()
    given = copy.deepcopy(saved)
    other.load_state_dict(given)
    assert_equal(given, saved, **EXACT)
    for _ in range(10):
        train(models[0], optimizer, 1)
        train(models[1], other, 1)
        assert_close(*map(values, models), **EXACT)
    states = [o.state_dict() for o in (optimizer, other)]
    found = [group.pop("param_names", None) for state in states for group in state["param_groups"]]
    own = ["layer.weight", "layer.bias"]
    assert found == [own if names[0] else None, own if any(names) else None]
    assert_equal(*states, **EXACT)
    other.param_groups.extend(other.param_groups)  # repeated parameters are numbered as they were
    assert other.state_dict()["param_groups"][-1]["params"] == states[0]["param_groups"][-1]["params"]


def as_numbers(tree):
    """Nested dicts, with numbers instead of zero-dimensional tensors."""
    if isinstance(tree, dict):
        return {key: as_numbers(value) for key, value in tree.items()}
    return tree.item() if isinstance(tree, Tensor) and tree.dim() == 0 else tree


@cases(True)
def test_load_nontensor_step(case):
    models = [Squares(), Squares()]
    optimizers = [case.make(model) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 3)
    saved = copy.deepcopy(optimizers[0].state_dict())
    with contextlib.suppress(ValueError):  # it may be refused, if nothing was changed
        optimizers[0].load_state_dict({**saved, "state": as_numbers(saved["state"])})
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 3)
    assert_close(*map(values, models))


@cases(True)
def test_can_load_older_state_dict(case):
    model = Squares()
    optimizer = case.make(model)
    train(model, optimizer, 3)
    old = copy.deepcopy(optimizer.state_dict())
    for group in old["param_groups"]:
        for flag in case.form.not_og_supported_flags:
            del group[flag]
    optimizer.load_state_dict(old)
    before = values(model)
    train(model, optimizer, 1)
    assert not torch.equal(model.layer.weight, before[0])


@cases(True)
def test_save_load_equality_with_weights_only(case):
    model = Squares()
    optimizer = case.make(model, model.named_parameters())
    train(model, optimizer, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    assert_equal(torch.load(file, weights_only=True), optimizer.state_dict(), **EXACT)


@forms
def test_state_dict_hooks(form):
    model = Squares()
    optimizer = form.make(model)
    train(model, optimizer, 2)
    optimizer.register_state_dict_post_hook(lambda _, saved: {**saved, "seen": saved["state"].pop("test", None)})
    assert optimizer.state_dict()["seen"] is None
    optimizer.register_state_dict_pre_hook(lambda optimizer: optimizer.state.update(test=1))
    saved = optimizer.state_dict()
    assert saved.pop("seen") == 1 and "test" not in saved["state"]
    seen = []
    optimizer.register_load_state_dict_pre_hook(lambda _, given: given["param_groups"][0].update(lr=0.002))
    optimizer.register_load_state_dict_pre_hook(lambda _, given: given["param_groups"][0].update(lr=0.1), prepend=True)
    optimizer.register_load_state_dict_post_hook(lambda optimizer: seen.append(optimizer.param_groups[0]["lr"]))
    optimizer.load_state_dict(saved)
    assert seen == [0.002]


@forms
def test_step_all_hooks(form):
    model, calls = Squares(), []
    optimizer, other = form.make(model), torch.optim.SGD(model.parameters())
    places = {
        "all pre": register_optimizer_step_pre_hook,
        "all post": register_optimizer_step_post_hook,
        "own pre": optimizer.register_step_pre_hook,
        "own post": optimizer.register_step_post_hook,
    }
    handles = [register(lambda *_, name=name: calls.append(name)) for name, register in places.items()]
    optimizer.step()
    other.step()
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert calls == ["all pre", "own pre", "own post", "all post", "all pre", "all post"]


@cases(True)
def test_deepcopy_copies_all_public_attrs(case):
    model = Squares()
    optimizer = case.make(model)
    train(model, optimizer, 3)
    for twin, other in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        public = [{name for name in vars(o) if not name.startswith("_")} for o in (optimizer, other)]
        assert public[0] == public[1]
        assert_equal(other.state_dict(), optimizer.state_dict(), **EXACT)
        train(twin, other, 1)
        assert not torch.equal(twin.layer.weight, model.layer.weight)


@cases(True)
def test_non_empty_state(case):
    model = Squares()
    optimizer = case.make(model)
    train(model, optimizer, 1)
    assert optimizer.state and all(len(state) > 0 for state in optimizer.state.values())


@pytest.mark.parametrize("kind", [SelectivePlasticityOptimizer, ConsolidatingPlasticityOptimizer])
def test_weights_decay_where_the_objective_is_maximised_as_well(kind):
    w = nn.Parameter(torch.ones(3))
    optimizer = kind([w], lr=0.1, weight_decay=0.5, maximize=True)
    w.grad = torch.zeros(3)
    optimizer.step()
    torch.testing.assert_close(w.detach(), torch.full((3,), 0.95))
