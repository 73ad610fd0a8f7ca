"""Code shared by the optimizers: gradient checks before anything changes, skipped steps, state dicts."""

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sp.biology import NMDACoincidence, Synapses
from sp.checks import check_choice, check_flag, check_number
from sp.optim.fast import Blocks, alike, local, whole

Groups = list[tuple[dict[str, Any], list[Tensor]]]
Calls = list[tuple[Callable[..., None], tuple]]


def scalar_dtype(parameter: Tensor) -> torch.dtype:
    """The dtype of a parameter's thresholds and corrections: never narrower than float32."""
    return torch.promote_types(parameter.dtype, torch.float32)


def signed_rate(group: dict[str, Any]) -> float | Tensor:
    """The learning rate of a group, a number or a zero-dimensional tensor; negative with ``maximize``."""
    rate = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
    return -rate if group["maximize"] else rate


class PlasticityOptimizer(Optimizer):
    """Base class of the optimizers. A subclass defines

    ``check_options(options)``: raise for the first invalid option of a parameter group, after the shared options;
    ``new_state(parameter)``: the state of a parameter before its first step, which holds only tensors. A loaded state
    keeps their shapes, dtypes and devices;
    ``measure(parameters)``: numbers whose sum is finite if all gradients of the parameters are;
    ``calls(groups, measured)``: functions, with their arguments, that change parameters and their state. It is given
    each group with its parameters that have a gradient, and the result of `measure`. It is called only if every
    gradient is finite, or if this is not checked;
    ``get_param_eligibility(param)`` and ``get_param_gate(param)``: a tensor of the parameter's shape, or None if it
    has no state.

    ``torch.compile(optimizer.step)`` compiles the functions that `calls` returns, and nothing else.

    Args:
        params: parameters, or dicts of parameters with their own options.
        defaults: the default options.
        coincidence: a watcher of the model, or None.
    """

    scratch = 1  # tensors of each parameter's shape that the fast form needs for intermediate results
    coincidence: NMDACoincidence | None = None  # needed while __init__ adds the first groups
    group_state: tuple[str, ...] = ("step_count",)  # keys that the first parameter group of a saved state must have

    def __init__(self, params: Iterable, defaults: dict[str, Any], coincidence: NMDACoincidence | None):
        if coincidence is not None and not isinstance(coincidence, NMDACoincidence):
            raise TypeError(f"coincidence must be None or NMDACoincidence(model), got a {type(coincidence).__name__}")
        if isinstance(params, nn.Module):
            raise TypeError(f"params must be parameters, got a {type(params).__name__}: pass model.parameters()")
        params = list(params) if not isinstance(params, Tensor) else params
        if isinstance(params, list) and not params:
            raise ValueError("params must hold at least one parameter, got an empty list: pass model.parameters()")
        super().__init__(params, {**defaults, "step_count": 0, "skipped_steps": 0})
        self.coincidence = coincidence
        if coincidence is not None and not self.watched():
            if not any(p.requires_grad for group in self.param_groups for p in group["params"]):
                raise ValueError("params must hold a parameter to train, but all are frozen: unfreeze some first")
            if self.layers():
                raise ValueError(
                    "the weights of all layers that coincidence watches are frozen, and biases alone follow the "
                    "diagonal rule: unfreeze a weight first, or leave coincidence out"
                )
            raise ValueError(
                "coincidence watches none of the parameters in params: pass NMDACoincidence(model) for the model that "
                "they belong to"
            )
        if coincidence is not None:
            coincidence.users.add(self)
        self._warn_of_missed_layers([p for group in self.param_groups for p in group["params"]])

    def check_options(self, options: dict[str, Any]) -> None:
        """Raise for the first invalid option; this method checks those that all optimizers share."""
        check_number("lr", options["lr"], 0)
        check_number("weight_decay", options["weight_decay"], 0)
        check_flag("maximize", options["maximize"])
        check_flag("foreach", options["foreach"])
        check_choice("on_nonfinite", options["on_nonfinite"], ("skip", "raise", "ignore"))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with their own options; invalid options raise before anything is added.

        Warns if they belong to a layer that was added after the watcher was made, and so is not watched.
        """
        self.check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        self._warn_of_missed_layers(self.param_groups[-1]["params"])

    def _warn_of_missed_layers(self, parameters: list[Tensor]) -> None:
        if self.coincidence is not None and self.coincidence.misses(parameters):
            warnings.warn(
                "coincidence does not watch a layer that was added after the watcher was made; it follows the diagonal "
                "rule: make a new NMDACoincidence(model) and a new optimizer, or add classes to an existing layer with "
                "sp.grow_outputs(layer, out_features, optimizer)",
                stacklevel=4,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "coincidence": self.coincidence}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.coincidence is not None:
            self.coincidence.users.add(self)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients and what the watcher recorded along with them."""
        super().zero_grad(set_to_none)
        self._forget_passes()

    def _forget_passes(self) -> None:
        if self.coincidence is not None:
            others = [user for user in self.coincidence.users if user is not self]
            self.coincidence.clear(keep=[s for user in others for s in user.layers().values()])

    def layers(self) -> dict[int, Synapses]:
        """Map the id of each parameter to its layer if the watcher knows the layer's weight, even a frozen one."""
        if self.coincidence is None:
            return {}
        own = {id(p) for group in self.param_groups for p in group["params"]}
        return {
            id(p): synapses
            for synapses in self.coincidence.synapses
            if id(synapses.weight) in own
            for p in synapses.parameters
            if id(p) in own
        }

    def watched(self) -> dict[int, Synapses]:
        """The entries of `layers` whose weight is trained."""
        return {key: synapses for key, synapses in self.layers().items() if synapses.weight.requires_grad}

    def group_of(self, param: Tensor) -> dict[str, Any]:
        """The parameter group that holds a parameter; ValueError if none does."""
        for group in self.param_groups:
            if any(p is param for p in group["params"]):
                return group
        raise ValueError(f"param must be one of this optimizer's, got another one, of shape {tuple(param.shape)}")

    def usual_gate(self, param: Tensor) -> float | Tensor:
        """The gate value of a synapse that counts as open, for parameters that have gates: 1."""
        return 1.0

    # Not compiled itself: it counts in Python, and the compiler would specialise on every count.
    @torch.compiler.disable(recursive=False)
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one step with the current gradients.

        Args:
            closure: re-evaluates the model and returns the loss, as for any ``torch.optim`` optimizer.

        Returns:
            The result of the closure, or None without one.

        Raises:
            TypeError: a gradient is sparse or complex; nothing was changed.
            FloatingPointError: a gradient holds NaN or infinity and ``on_nonfinite="raise"``; nothing was changed.
        """
        with torch.no_grad():
            loss, calls = self._prepare(closure)
            for function, arguments in calls:
                function(*arguments)
        return loss

    @torch.compiler.disable
    def _prepare(self, closure: Callable[[], Any] | None) -> tuple[Any, Calls]:
        """Do all that is not compiled. Return the loss and the calls left: none if skipped or without gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [
            (group, [p for p in group["params"] if p.grad is not None and p.requires_grad])
            for group in self.param_groups
        ]
        self._refuse([p for _, parameters in groups for p in parameters])
        filled = [(group, [p for p in parameters if p.numel() > 0]) for group, parameters in groups]
        with_gradient = [p for _, parameters in filled for p in parameters]
        measured = self.measure(with_gradient) if with_gradient else None
        if measured is not None and self.asks and not math.isfinite(measured.sum()):
            self._skip(with_gradient)
            return loss, []
        for group, parameters in groups:
            group["step_count"] += 1
            for p in parameters:
                if not self.state.get(p):
                    self.state[p] = self.new_state(p)
            if group["weight_decay"]:
                kept = 1 - abs(signed_rate(group)) * group["weight_decay"]
                for members in alike(parameters):
                    factor = kept.to(members[0].device) if isinstance(kept, Tensor) else kept
                    torch._foreach_mul_([local(p) for p in members], factor)
        return loss, self.calls(filled, measured) if with_gradient else []

    def _refuse(self, parameters: list[Tensor]) -> None:
        for p in parameters:
            if p.grad.layout != torch.strided or p.grad.is_complex():
                raise TypeError(
                    f"{type(self).__name__} takes dense real gradients, got one of layout {p.grad.layout} and dtype "
                    f"{p.grad.dtype} for the parameter of shape {tuple(p.shape)}; nothing was changed. Build an "
                    "Embedding with sparse=False, or give that parameter to another optimizer."
                )

    @property
    def blocks(self) -> Blocks:
        """Cuts this optimizer's tensors into blocks; a copy of the optimizer has its own."""
        return self.__dict__.setdefault("_blocks", Blocks(self.scratch))

    @property
    def asks(self) -> bool:
        """Whether each step checks that all gradients are finite: True unless all groups ignore it."""
        return any(group["on_nonfinite"] != "ignore" for group in self.param_groups)

    def _skip(self, parameters: list[Tensor]) -> None:
        if any(group["on_nonfinite"] == "raise" for group in self.param_groups):
            wrong = [tuple(p.shape) for p in parameters if not p.grad.isfinite().all()] or ["all together"]
            raise FloatingPointError(
                f"the gradient of the parameter(s) of shape {', '.join(map(str, wrong))} holds NaN or infinity; "
                'nothing was changed. Lower lr or clip the gradient, or skip such steps with on_nonfinite="skip".'
            )
        for group in self.param_groups:
            group["skipped_steps"] += 1
        self._forget_passes()  # the passes behind this gradient must not count in the next step

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume exactly where ``state_dict()`` was taken; numbers keep their precision in half-precision models.

        Raises:
            ValueError: groups or shapes do not match the parameters, or the state is that of another optimizer;
                nothing was changed.
        """
        loaded = []

        def look(_: Optimizer, given: dict[str, Any]) -> None:  # runs after the caller's hooks, which may change it
            self._check_state(given)
            loaded.append(given)

        options = dict(self.defaults)  # copied, since PyTorch adds to them when it loads
        handle = self.register_load_state_dict_pre_hook(look)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        for group in self.param_groups:  # options that the saved optimizer did not have yet
            group.update({**options, **group})
        for p, state in self._pairs(loaded[0]):
            fresh = self.state_like(p, state) if state else {}
            for name in fresh.keys() & state.keys():
                self.state[p][name] = state[name].to(fresh[name].device, fresh[name].dtype, copy=True)

    def state_like(self, parameter: Tensor, saved: dict[str, Any]) -> dict[str, Tensor]:
        """The state of a parameter before its first step, of the kind that was saved if there are several."""
        return self.new_state(parameter)

    def _pairs(self, state_dict: dict[str, Any]) -> list[tuple[Tensor, dict[str, Any]]]:
        """Each parameter with its entry in a state dict, matched by the order of the parameters."""
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        own = [p for group in self.param_groups for p in group["params"]]
        return [(p, state_dict["state"].get(i, {})) for i, p in zip(ids, own, strict=False)]

    def _check_state(self, state_dict: dict[str, Any]) -> None:
        if not state_dict.get("param_groups") or not isinstance(state_dict.get("state"), dict):
            raise ValueError(
                "state_dict must be what optimizer.state_dict() returned, with 'state' and 'param_groups'; got one "
                f"with {', '.join(map(repr, list(state_dict)[:3])) or 'nothing'}. Nothing was changed."
            )
        lacking = [name for name in self.group_state if name not in state_dict["param_groups"][0]]
        if lacking:
            raise ValueError(
                f"state_dict is not that of a {type(self).__name__}: its first group lacks {lacking[0]!r}; nothing was "
                "changed. Load it into an optimizer of the kind that was saved, or start with a new one."
            )
        ids = {i for group in state_dict["param_groups"] for i in group["params"]}
        foreign = [i for i in state_dict["state"] if i not in ids]
        if foreign:
            raise ValueError(
                f"state_dict has a state for {foreign[0]!r}, which is not one of its parameters; nothing was changed. "
                "Remove that entry from its 'state'."
            )
        for p, state in self._pairs(state_dict):
            if state and (wrong := _misfit(state, self.state_like(p, state))):
                raise ValueError(
                    f"state_dict {wrong} for a parameter of shape {tuple(p.shape)}; nothing was changed. Load it into "
                    f"an optimizer made like the saved one (this is a {type(self).__name__} "
                    f"with{'' if self.coincidence is not None else 'out'} coincidence), with the parameters of the "
                    "same model in the same order, or start with a new one."
                )

    @torch.no_grad()
    def get_diagnostics(self) -> dict[str, float]:
        """Report how the optimizer is doing (P2). Free in a step; a call costs one pass over parameters and state.

        Returns:
            ``step_count``: steps taken. ``skipped_steps``: steps skipped because a gradient was not finite.
            ``eligibility_mean``, ``gate_mean``: means of `get_param_eligibility`, in its units, and of
            `get_param_gate`, in [0, 1], over all parameters that have a state. Before the first step they are 0 and 1:
            nothing is tagged, everything is plastic. When the gate gets close to zero, plasticity has run out.
        """
        eligibility_sum, gate_sum, count = 0.0, 0.0, 0
        for p in (p for group in self.param_groups for p in group["params"]):
            eligibility = self.get_param_eligibility(p)
            if eligibility is not None:
                eligibility_sum += float(whole(eligibility).sum(dtype=torch.float64))
                gate_sum += float(whole(self.get_param_gate(p)).sum(dtype=torch.float64))
                count += p.numel()
        return {
            "step_count": max(group["step_count"] for group in self.param_groups),
            "skipped_steps": max(int(group["skipped_steps"]) for group in self.param_groups),
            "eligibility_mean": eligibility_sum / count if count else 0.0,
            "gate_mean": gate_sum / count if count else 1.0,
        }


def _misfit(state: dict[str, Any], fresh: dict[str, Tensor]) -> str | None:
    """What is wrong with a parameter's state, compared with its initial state; None if it fits."""
    for name, value in fresh.items():
        if name not in state:
            return f"lacks {name!r}"
        if not isinstance(state[name], Tensor):
            return f"has {name!r} of type {type(state[name]).__name__} instead of a tensor"
        if state[name].shape != value.shape:
            return f"has {name!r} of shape {tuple(state[name].shape)}"
    foreign = [name for name in state if name not in fresh]
    return f"has {foreign[0]!r}, which this optimizer does not know," if foreign else None
