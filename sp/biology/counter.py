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
    """The events that were counted for one parameter.

    Attributes:
        looks: number of steps that were inspected.
        ltp, ltd: for each synapse, in how many of these steps its weight grew, or shrank, while its gate was open.
        shut: in how many of these steps its gate was shut. All three are int32 and shaped like the parameter.
    """

    looks: int
    ltp: Tensor
    ltd: Tensor
    shut: Tensor


class PlasticityCounter(Hooked):
    """Counts long-term potentiation and depression, synapse by synapse, while an optimizer steps (P10, P11).

    In an LTP event, the weight grew in a step and the gate was open. In an LTD event, it shrank and the gate was open.
    Works with every ``torch.optim`` optimizer; one without ``get_param_gate`` has no gate, which counts as open. Growth
    is signed, as in the published text: a negative weight that grows is a weakening inhibition, so the analogy ends
    here. In the coincidence form of consolidation, a projection, the gate is the value of ``get_param_gate`` (the share
    of a change at that synapse alone that passes) relative to the median of the layer.

    By default only every twentieth step is inspected, so the counter can be left on. The number of events in all steps
    is about ``every`` times the count. It stores three int32 per synapse and, during an inspected step, the weights
    from before it. The counter does not keep the optimizer alive, nor the optimizer the counter.

    Args:
        optimizer_or_model: an optimizer, or a model. A model names the parameters, and any optimizer that steps it is
            counted. An optimizer made with ``named_parameters()`` also knows the names; else parameters are numbered.
        every: number of steps from one inspection to the next, >= 1; 1 counts every step.
        open_at: smallest gate that counts as open, in (0, 1]; in the coincidence form, in units of the median.

    Attributes:
        events: the events so far, by parameter name.

    Raises:
        TypeError: an argument has the wrong type. ValueError: a number is outside its range.
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
        """Set all counts to zero, for example at a task switch."""
        self.events = {
            name: Events(0, *(torch.zeros_like(p, dtype=torch.int32) for _ in range(3)))
            for name, p in self._parameters.items()
        }

    def rows(self) -> list[dict[str, str | int]]:
        """The events as a table, one row per parameter; `events` has them synapse by synapse.

        Returns:
            ``parameter``, ``synapses`` (their number), ``looks`` (inspected steps), ``ltp``, ``ltd``, ``shut`` (events
            of all its synapses). ``pandas.DataFrame`` accepts it as it is.
        """
        rows = []
        for name, seen in self.events.items():
            sums = {kind: int(getattr(seen, kind).sum()) for kind in _KINDS}
            rows.append({"parameter": name, "synapses": seen.ltp.numel(), "looks": seen.looks, **sums})
        return rows

    def state_dict(self) -> dict[str, dict[str, int | Tensor]]:
        """The events so far by parameter name, as tensors and numbers that ``torch.save`` can store.

        The number of steps to the next inspection is not included: a new counter that loads it waits ``every`` steps.
        """
        self._fit()
        return {name: {**vars(seen)} for name, seen in self.events.items()}

    def load_state_dict(self, state: dict[str, dict[str, int | Tensor]]) -> None:
        """Continue from the events of another counter.

        Raises:
            ValueError: they belong to other parameters or shapes. The counts so far are then unchanged.
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
        """Add synapses without events for parameters that have grown since (`sp.grow_outputs`)."""
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
            # Checked only now, because a closure computes the gradients within the step.
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
