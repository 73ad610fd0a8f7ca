"""What the optimizers share: gradients that are looked at before anything changes, skipped steps, state dicts."""

from collections.abc import Callable, Iterable
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from sp.biology import NMDACoincidence, Synapses
from sp.checks import check_choice, check_flag, check_number
from sp.optim.fast import Compiled, local, summed_over_shards, whole


def scalar_dtype(parameter: Tensor) -> torch.dtype:
    """The type in which thresholds and corrections of a parameter are kept: never narrower than float32."""
    return torch.promote_types(parameter.dtype, torch.float32)


def zero_unless(finite: Tensor, values: Tensor) -> Tensor:
    """``values`` where the tensor ``finite`` is True, else zeros, in which no NaN is left.

    A CPU's flag is there to be looked at. An accelerator is not waited for: there the bits are masked, since a NaN
    times zero is still NaN.
    """
    if values.device.type == "cpu":
        return values if finite else torch.zeros_like(values)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    return torch.bitwise_and(values.view(integer), -finite.to(integer)).view(values.dtype)


def signed_rate(group: dict[str, Any]) -> float | Tensor:
    """The learning rate of a group, a number or a tensor without dimensions; below zero where it climbs."""
    rate = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
    return -rate if group["maximize"] else rate


_NO_OPTIONS = ("self", "params", "coincidence")


class PlasticityOptimizer(Optimizer):
    """Base of the optimizers. A subclass defines five methods:

    ``check_options(options)`` raises a ValueError or TypeError that names the first wrong option of a parameter group,
    after those that are checked here for all optimizers;
    ``initialise(parameters)`` makes the state of parameters before their first step;
    ``update(groups, finite)`` changes parameters and their state, given each group with those of its parameters that
    have a gradient, and leaves all as it is where the tensor ``finite`` is False;
    ``get_param_eligibility(param)`` and ``get_param_gate(param)`` give a tensor of the parameter's shape, or None where
    it has no state.

    What of a parameter's state has the parameter's shape is named in ``parameter_state``. It has the parameter's dtype
    as well, unless ``wide_state`` names it, too: that and everything else is kept in float32 or wider, also when a
    state dict is loaded into a half-precision model.

    Args:
        params: parameters, or dicts of parameters with options of their own.
        defaults: the options.
        coincidence: a watcher of the model, or None.
    """

    parameter_state: tuple[str, ...] = ()
    wide_state: tuple[str, ...] = ()
    group_state: tuple[str, ...] = ("step_count",)  # what the first parameter group of a saved state has to hold

    def __init__(self, params: Iterable, defaults: dict[str, Any], coincidence: NMDACoincidence | None):
        if coincidence is not None and not isinstance(coincidence, NMDACoincidence):
            raise TypeError(f"coincidence must be None or NMDACoincidence(model), got a {type(coincidence).__name__}")
        self.coincidence = coincidence
        if isinstance(params, nn.Module):
            raise TypeError(f"params must be parameters, got a {type(params).__name__}: pass model.parameters()")
        params = list(params) if not isinstance(params, Tensor) else params
        if isinstance(params, list) and not params:
            raise ValueError("params must hold at least one parameter, got an empty list: pass model.parameters()")
        super().__init__(params, {**defaults, "step_count": 0, "skipped_steps": 0})
        if coincidence is not None and not self.watched():
            raise ValueError(
                "coincidence watches none of the parameters in params: pass NMDACoincidence(model) of the model that "
                "they belong to"
            )

    @classmethod
    def chosen(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Of the local names of this class's ``__init__`` those that are options.

        It is called by the class's own name, since a subclass may have other arguments.
        """
        return {name: given[name] for name in signature(cls.__init__).parameters if name not in _NO_OPTIONS}

    @classmethod
    def default(cls, option: str) -> Any:
        """The value of an option that is not given."""
        return signature(cls).parameters[option].default

    def check_options(self, options: dict[str, Any]) -> None:
        """Raise for the first wrong option; here for those that all optimizers have."""
        check_number("lr", options["lr"], 0)
        check_number("weight_decay", options["weight_decay"], 0)
        for name in ("maximize", "foreach", "compile", "differentiable"):
            check_flag(name, options[name])
        if options["differentiable"]:
            raise ValueError(
                "differentiable must be False, got True: the step works in place and cannot be differentiated through; "
                "for meta-learning take gradients of the inner updates with torch.func instead"
            )
        if options["compile"] and not options["foreach"]:
            raise ValueError("foreach must be True with compile=True, got False: leave one of the two out")
        check_choice("on_nonfinite", options["on_nonfinite"], ("skip", "raise"))

    def compiled(self, function: Callable) -> Compiled:
        """This optimizer's compiled form of a function; compiled when it is first called."""
        known = self.__dict__.setdefault("_compiled", {})
        if function not in known:
            known[function] = Compiled(function)
        return known[function]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "coincidence": self.coincidence}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own; wrong options raise before anything is added."""
        self.check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and what the watcher recorded beside them."""
        super().zero_grad(set_to_none)
        if self.coincidence is not None:
            self.coincidence.clear()

    def watched(self) -> dict[int, Synapses]:
        """The watched layer of each parameter that the watcher covers, by the parameter's id."""
        if self.coincidence is None:
            return {}
        own = {id(p) for group in self.param_groups for p in group["params"]}
        return {
            id(p): synapses
            for synapses in self.coincidence.synapses
            if synapses.weight.requires_grad and id(synapses.weight) in own
            for p in synapses.parameters
            if id(p) in own
        }

    def group_of(self, param: Tensor) -> dict[str, Any]:
        """The parameter group that holds a parameter; ValueError where none does."""
        for group in self.param_groups:
            if any(p is param for p in group["params"]):
                return group
        raise ValueError(f"param must be one of this optimizer's, got one of shape {tuple(param.shape)} that is not")

    @torch.no_grad()
    def step(self, closure=None):
        """Make one step from the gradients that are there.

        Args:
            closure: re-evaluates the model and returns the loss, as for any ``torch.optim`` optimizer.

        Returns:
            What the closure returned, else None.

        Raises:
            TypeError: a gradient is sparse or complex; nothing was changed.
            FloatingPointError: a gradient holds NaN or infinity and ``on_nonfinite="raise"``; nothing was changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [
            (group, [p for p in group["params"] if p.grad is not None and p.numel() > 0]) for group in self.param_groups
        ]
        finite = self._finite([p for _, parameters in groups for p in parameters])
        not_finite = finite.logical_not()
        for group, parameters in groups:
            group["step_count"] += 1
            group["skipped_steps"] = group["skipped_steps"] + not_finite
            new = [p for p in parameters if not self.state[p]]
            if new:
                self.initialise(new)
            if group["weight_decay"]:
                _decay(parameters, abs(signed_rate(group)) * group["weight_decay"], finite)
        self.update(groups, finite)
        return loss

    def _finite(self, parameters: list[Tensor]) -> Tensor:
        """True, on the device, when every gradient is finite; found without waiting for the device."""
        for p in parameters:
            if p.grad.layout != torch.strided or p.grad.is_complex():
                raise TypeError(
                    f"{type(self).__name__} takes dense real gradients, got one of layout {p.grad.layout} and dtype "
                    f"{p.grad.dtype} for the parameter of shape {tuple(p.shape)}; nothing was changed. Build an "
                    "Embedding with sparse=False, or give that parameter to another optimizer."
                )
        finite = None
        for members in by_device_and_dtype(parameters):
            seen = self.total(members).isfinite()
            finite = seen if finite is None else finite & seen.to(finite.device, non_blocking=True)
        if finite is None:
            return torch.tensor(True)
        if any(group["on_nonfinite"] == "raise" for group in self.param_groups) and not finite:
            wrong = [tuple(p.shape) for p in parameters if not p.grad.isfinite().all()]
            raise FloatingPointError(
                f"the gradient of the parameter(s) of shape {', '.join(map(str, wrong))} holds NaN or infinity; "
                'nothing was changed. Lower lr or clip the gradient, or skip such steps with on_nonfinite="skip".'
            )
        return finite

    def total(self, members: list[Tensor]) -> Tensor:
        """A number that is finite where all gradients of parameters of one device and dtype are."""
        # A sum is, and nothing costs less.
        half = {"dtype": torch.float32} if members[0].dtype.itemsize == 2 else {}
        return summed_over_shards(torch.stack([local(p.grad).sum(**half) for p in members]).sum(), members[0])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on exactly where ``state_dict()`` was taken; numbers keep their precision in half-precision models.

        Raises:
            ValueError: groups or shapes are those of other parameters; nothing was changed.
        """
        seen = []
        # The hooks of a caller may give another dict, so it is looked at last before it is loaded.
        handles = [
            self.register_load_state_dict_pre_hook(lambda _, final: seen.append(self._checked(final))),
            self.register_load_state_dict_post_hook(lambda _: self._restore_precision(*seen), prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def _pairs(self, state_dict: dict[str, Any]) -> list[tuple[Tensor, dict[str, Any]]]:
        """Each parameter with what a state dict has for it; the order of the parameters tells which is whose."""
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        own = [p for group in self.param_groups for p in group["params"]]
        return [(p, state_dict["state"].get(i, {})) for i, p in zip(ids, own, strict=False)]

    def misfit(self, parameter: Tensor, state: dict[str, Tensor]) -> str | None:
        """What is wrong with a state (not an empty one) for a parameter; None where it fits."""
        for name in self.parameter_state:
            if name not in state:
                return f"lacks {name!r}"
            if state[name].shape != parameter.shape:
                return f"has {name!r} of shape {tuple(state[name].shape)}"
        return None

    def _checked(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        if not state_dict.get("param_groups"):
            raise ValueError(
                "state_dict must be what optimizer.state_dict() gave, with 'state' and 'param_groups'; got one with "
                f"{', '.join(map(repr, list(state_dict)[:3])) or 'nothing'}. Nothing was changed."
            )
        lacking = [name for name in self.group_state if name not in state_dict["param_groups"][0]]
        if lacking:
            raise ValueError(
                f"state_dict is not that of a {type(self).__name__}, its first group lacks {lacking[0]!r}; nothing was "
                "changed. Load it into an optimizer of the kind that was saved, or begin with a new one."
            )
        for p, state in self._pairs(state_dict):
            if state and (wrong := self.misfit(p, state)):
                raise ValueError(
                    f"state_dict {wrong} for a parameter of shape {tuple(p.shape)}; nothing was changed. Load it into "
                    f"an optimizer made as the saved one was, here a {type(self).__name__} "
                    f"with{'' if self.coincidence is not None else 'out'} coincidence, with the parameters of the same "
                    "model in the same order; or begin with a new one."
                )
        return state_dict

    def _restore_precision(self, state_dict: dict[str, Any]) -> None:
        for group in self.param_groups:  # options that the saved optimizer did not have yet
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        for p, state in self._pairs(state_dict):
            for name, value in state.items():
                if name not in self.parameter_state or name in self.wide_state:
                    dtype = scalar_dtype(p) if value.is_floating_point() else value.dtype
                    self.state[p][name] = value.to(p.device, dtype, copy=True)

    @torch.no_grad()
    def get_diagnostics(self) -> dict[str, float]:
        """How the optimizer is doing (P2). Costs nothing in a step, a pass over parameters and state when called.

        Returns:
            ``step_count``: steps taken. ``skipped_steps``: steps skipped for a gradient that was not finite.
            ``eligibility_mean``, ``gate_mean``: means of `get_param_eligibility`, in its units, and of
            `get_param_gate`, in [0, 1], over all parameters that have a state. Before the first step they are 0 and 1:
            nothing is tagged, everything is plastic. When the gate comes near zero, plasticity has run out.
        """
        skipped = max(int(group["skipped_steps"]) for group in self.param_groups)
        calls = max(group["step_count"] for group in self.param_groups)
        eligibility_sum, gate_sum, count = 0.0, 0.0, 0
        for p in (p for group in self.param_groups for p in group["params"]):
            eligibility = self.get_param_eligibility(p)
            if eligibility is None:
                continue
            eligibility_sum += float(whole(eligibility).sum(dtype=torch.float64))
            gate_sum += float(whole(self.get_param_gate(p)).sum(dtype=torch.float64))
            count += p.numel()
        means = (eligibility_sum / count, gate_sum / count) if count else (0.0, 1.0)
        steps = {"step_count": calls - skipped, "skipped_steps": skipped}
        return {**steps, "eligibility_mean": means[0], "gate_mean": means[1]}


def _decay(parameters: list[Tensor], share: float | Tensor, finite: Tensor) -> None:
    """Multiply weights by ``1 - share``, where the step is finite."""
    for members in by_device_and_dtype(parameters):
        kept = torch.where(finite.to(members[0].device, non_blocking=True), 1 - share, 1.0)
        torch._foreach_mul_([local(p) for p in members], [kept] * len(members))


def by_device_and_dtype(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Parameters in lists that the foreach functions can take at once; those that are sharded alike stay together."""
    lists: dict[Any, list[Tensor]] = {}
    for p in parameters:
        sharding = (p.device_mesh, p.placements) if isinstance(p, DTensor) else None
        lists.setdefault((p.device, p.dtype, sharding), []).append(p)
    return list(lists.values())
