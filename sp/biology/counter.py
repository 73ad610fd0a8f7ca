"""Counting potentiation and depression, synapse by synapse, while any optimizer steps."""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from sp.biology.hooks import Hooked, weakly
from sp.checks import check_integer, check_number

_KINDS = ("ltp", "ltd", "shut")


@dataclass
class Events:
    """What a counter saw of one parameter.

    Attributes:
        looks: steps that were looked at.
        ltp, ltd: for each synapse, in how many of them its weight grew, or shrank, while its gate was open.
        shut: in how many of them its gate was shut. All three int32, shaped like the parameter.
    """

    looks: int
    ltp: Tensor
    ltd: Tensor
    shut: Tensor


class PlasticityCounter(Hooked):
    """Counts long-term potentiation and depression, synapse by synapse, while an optimizer steps (P10, P11).

    An LTP event: the weight grew in a step and the gate was open. An LTD event: it shrank, and the gate was open. Works
    with every ``torch.optim`` optimizer; one without ``get_param_gate`` has no gate, which counts as open. Growing is
    meant with its sign, as the published text has it: a negative weight that grows is an inhibition that weakens, so
    that here the analogy ends. In the coincidence form of consolidation, a projection, the gate is what its
    ``get_param_gate`` says, the share of a change at the one synapse that passes, beside the median of the layer's.

    Every twentieth step is looked at, so that it may be left on: the events of all steps are about ``every`` times as
    many. It keeps three int32 for each synapse, and for as long as such a step lasts the weights from before it. It
    does not keep the optimizer alive, nor does the optimizer keep the counter.

    Args:
        optimizer_or_model: an optimizer; or a model, which gives the parameters their names, for whichever optimizers
            step it. An optimizer made with ``named_parameters()`` knows the names as well, others get numbers.
        every: steps from one look to the next, >= 1; 1 counts every step.
        open_at: smallest gate that counts as open, in (0, 1]; in the coincidence form in units of the median.

    Attributes:
        events: what was seen so far, by the parameter's name.

    Raises:
        TypeError: ``optimizer_or_model`` is neither, or a number is none. ValueError: a number outside its range.
    """

    def __init__(self, optimizer_or_model: Optimizer | nn.Module, every: int = 20, open_at: float = 0.5):
        check_integer("every", every, 1)
        check_number("open_at", open_at, 0, 1, low_open=True)
        if not isinstance(optimizer_or_model, Optimizer | nn.Module):
            raise TypeError(
                "optimizer_or_model must be a torch optimizer or a torch.nn.Module, got a "
                f"{type(optimizer_or_model).__name__}"
            )
        self.every, self.open_at = every, open_at
        self._parameters = dict(_named_parameters(optimizer_or_model))
        self._steps: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._before: dict[str, Tensor] = {}
        self.reset()
        if isinstance(optimizer_or_model, Optimizer):
            before, after = optimizer_or_model.register_step_pre_hook, optimizer_or_model.register_step_post_hook
        else:
            before, after = register_optimizer_step_pre_hook, register_optimizer_step_post_hook
        self._hold([before(weakly(self._remember)), after(weakly(self._count))])

    def reset(self) -> None:
        """Begin to count anew, as at the switch to another task."""
        self.events = {
            name: Events(0, *(torch.zeros_like(p, dtype=torch.int32) for _ in range(3)))
            for name, p in self._parameters.items()
        }

    def rows(self) -> list[dict[str, str | int]]:
        """The events as a table, one row a parameter; `events` has them synapse by synapse.

        Returns:
            ``parameter``, ``synapses`` (how many it has), ``looks`` (steps looked at), ``ltp``, ``ltd``, ``shut``
            (events of all its synapses). ``pandas.DataFrame`` takes it as it is.
        """
        rows = []
        for name, seen in self.events.items():
            sums = {kind: int(getattr(seen, kind).sum()) for kind in _KINDS}
            rows.append({"parameter": name, "synapses": seen.ltp.numel(), "looks": seen.looks, **sums})
        return rows

    def state_dict(self) -> dict[str, dict[str, int | Tensor]]:
        """The events so far by the parameter's name, in tensors and numbers that ``torch.save`` keeps.

        The way to the next look is not in it: a counter that is loaded begins its ``every`` steps anew.
        """
        self._fit()
        return {name: {**vars(seen)} for name, seen in self.events.items()}

    def load_state_dict(self, state: dict[str, dict[str, int | Tensor]]) -> None:
        """Go on from the events of another counter.

        Raises:
            ValueError: they are of other parameters or shapes. What was counted so far is then untouched.
        """
        shapes = {name: seen["ltp"].shape for name, seen in state.items()}
        own = {name: p.shape for name, p in self._parameters.items()}
        if other := sorted(name for name in {*shapes, *own} if shapes.get(name) != own.get(name)):
            raise ValueError(
                f"state must hold the events of this counter's parameters, and differs in {', '.join(other)}: "
                "make the counter of the same model or optimizer"
            )
        for name, p in self._parameters.items():
            values = {kind: state[name][kind].to(p.device, torch.int32, copy=True) for kind in _KINDS}
            self.events[name] = Events(int(state[name]["looks"]), **values)

    def _fit(self) -> None:
        """Give parameters that have grown since (`sp.grow_outputs`) synapses without events."""
        for name, p in self._parameters.items():
            seen = self.events[name]
            for kind in _KINDS if seen.ltp.shape != p.shape else ():
                counts = getattr(seen, kind)
                setattr(seen, kind, F.pad(counts, (0, 0) * (p.dim() - 1) + (0, len(p) - len(counts))))

    def _remember(self, optimizer: Optimizer) -> None:
        self._steps[optimizer] = self._steps.get(optimizer, 0) + 1
        if self._steps[optimizer] % self.every:
            return
        self._fit()
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._before = {name: p.detach().clone() for name, p in self._parameters.items() if id(p) in held}

    @torch.no_grad()
    def _count(self, optimizer: Optimizer) -> None:
        for name, before in self._before.items():
            weight, seen = self._parameters[name], self.events[name]
            # Asked only now: a closure makes the gradients within the step.
            if weight.grad is None and torch.equal(weight, before):
                continue
            grew, shrank = weight > before, weight < before
            gate = optimizer.get_param_gate(weight) if hasattr(optimizer, "get_param_gate") else None
            if gate is not None:
                usual = optimizer.usual_gate(weight) if hasattr(optimizer, "usual_gate") else 1.0
                shut = gate < self.open_at * usual
                seen.shut += shut
                is_open = shut.logical_not_()
                grew &= is_open
                shrank &= is_open
            seen.ltp += grew
            seen.ltd += shrank
            seen.looks += 1
        self._before = {}


def _named_parameters(owner: Optimizer | nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    if isinstance(owner, nn.Module):
        for name, p in owner.named_parameters():
            yield name.removeprefix("_orig_mod."), p
        return
    number = 0
    for group in owner.param_groups:
        for place, p in enumerate(group["params"]):
            yield group["param_names"][place] if "param_names" in group else f"parameter {number}", p
            number += 1
