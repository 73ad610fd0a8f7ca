"""The biology plotted in notebook 04: formulas that no optimizer uses, and small simulations of single mechanisms.

Every simulation returns the rows of a table as a list of dictionaries; ``pandas.DataFrame`` accepts it as it is.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sp.rules import eligibility_trace

Rows = list[dict[str, float | str]]


def magnesium_block(voltage: Tensor, magnesium: float = 1.0) -> Tensor:
    """Share of NMDA receptors that magnesium leaves unblocked (Jahr & Stevens 1990; effect: Nowak et al. 1984).

    ``B(V) = 1 / (1 + [Mg] exp(-0.062 V) / 3.57)``, in (0, 1), rising with the voltage.

    Args:
        voltage: membrane potential V, in mV.
        magnesium: concentration outside the cell, >= 0, in mM; about 1 in the brain.
    """
    return 1 / (1 + magnesium * torch.exp(-0.062 * voltage) / 3.57)


def nmda_conductance(glutamate: Tensor, voltage: Tensor, magnesium: float = 1.0, largest: float = 1.0) -> Tensor:
    """Conductance of a synapse's NMDA receptors: both glutamate and depolarisation are needed (Jahr & Stevens 1990).

    ``g = g_max * s * B(V)``, with B of `magnesium_block`.

    Args:
        glutamate: share s of receptors with bound glutamate, in [0, 1].
        voltage: membrane potential V, in mV, same shape or broadcastable.
        magnesium: concentration outside the cell, >= 0, in mM.
        largest: g_max >= 0, in the unit of the result (nS); 1 gives the result as a share.
    """
    return largest * glutamate * magnesium_block(voltage, magnesium)


def bcm_change(presynaptic: Tensor, postsynaptic: Tensor, threshold: Tensor | float) -> Tensor:
    """Synaptic change in Intrator & Cooper's (1992) form of the rule of Bienenstock, Cooper & Munro (1982).

    ``x y (y - theta)``, per unit of learning rate: LTD if the postsynaptic rate is between zero and the threshold, LTP
    above it, no change without presynaptic rate.

    Args:
        presynaptic: rate x >= 0. postsynaptic: rate y >= 0, in the same unit (Hz).
        threshold: theta > 0, in the unit of y.
    """
    return presynaptic * postsynaptic * (postsynaptic - threshold)


def bcm_threshold(threshold: Tensor, postsynaptic: Tensor, decay: float, target: float = 1.0) -> Tensor:
    """The sliding threshold between LTD and LTP (Intrator & Cooper 1992): it follows the mean squared rate.

    ``theta <- decay * theta + (1 - decay) * y^2 / target``, so that a steady rate equal to ``target`` is its own
    threshold. A busy neuron comes to need a higher rate for LTP, a quiet one a lower rate.

    Args:
        threshold: theta so far, >= 0, in the unit of y. postsynaptic: rate y >= 0 (Hz).
        decay: share of the old threshold that is kept, in [0, 1).
        target: rate > 0 at which theta settles at y.
    """
    return decay * threshold + (1 - decay) * postsynaptic**2 / target


def captured(late: Tensor, tag: Tensor, proteins: Tensor | float) -> Tensor:
    """Synaptic tagging and capture (Frey & Morris 1997, 1998): a tagged synapse turns proteins into a lasting change.

    ``late <- late + proteins * tag``. A weak stimulus leaves a tag that fades (`sp.rules.eligibility_trace`); if a
    strong one elsewhere on the neuron brings proteins meanwhile (shown in 1998; in 1997 it came first), the change
    lasts. This is the simplest form of models like Clopath et al. (2008); `sp.rules.consolidated_eligibility` is the
    same with proteins always present.

    Args:
        late: lasting change of each synapse. tag: its fading change, same shape and unit.
        proteins: share of a tag that is captured in this step, in [0, 1].
    """
    return late + proteins * tag


def synaptic_scaling(weights: Tensor, rate: Tensor | float, target: float) -> Tensor:
    """Synaptic scaling (Turrigiano et al. 1998): one factor for all synapses of a neuron, which restores its rate.

    ``w * target / rate``: ratios between synapses are kept. The neuron's rate must be proportional to its weights.

    Args:
        weights: incoming weights of one neuron, any shape.
        rate: mean rate of the neuron, > 0 (Hz). target: the rate it returns to, > 0, same unit.
    """
    return weights * (target / rate)


def nmda(glutamate: Sequence[float] = (0.1, 0.5, 1.0), magnesium: float = 1.0) -> Rows:
    """Conductance of NMDA receptors against voltage, for several shares of receptors with bound glutamate.

    Returns:
        ``voltage`` (mV), ``glutamate`` (share, as text), ``conductance`` (share of the largest).
    """
    voltage = torch.linspace(-90, 40, 131)
    rows = []
    for share in glutamate:
        conductance = nmda_conductance(torch.tensor(share), voltage, magnesium)
        rows += _line(voltage=voltage, glutamate=f"glutamate {share:g}", conductance=conductance)
    return rows


def trace_of_a_burst(decays: Sequence[float], burst: int = 50, steps: int = 600) -> Rows:
    """Eligibility of a synapse that is used (``|g| = 1``) for the first ``burst`` steps and silent afterwards.

    Returns:
        ``step`` (from 1), ``decay`` (as text), ``eligibility`` (in units of that gradient).
    """
    used = (torch.arange(steps) < burst).float()
    rows = []
    for decay in decays:
        path = [torch.zeros(())]
        for gradient in used:
            path.append(eligibility_trace(path[-1], gradient, decay))
        rows += _line(step=torch.arange(1, steps + 1), decay=f"β = {decay:g}", eligibility=torch.stack(path[1:]))
    return rows


def bcm(thresholds: Sequence[float] = (5.0, 10.0), highest: float = 15.0) -> Rows:
    """Change of a synapse with a presynaptic rate of 1 Hz against the postsynaptic rate, for several thresholds in Hz.

    Returns:
        ``rate`` (Hz), ``threshold`` (as text), ``change`` (per unit of learning rate, in units of the largest shown).
    """
    rate = torch.linspace(0, highest, 151)
    changes = {theta: bcm_change(torch.ones(()), rate, theta) for theta in thresholds}
    largest = max(change.max() for change in changes.values())
    rows = []
    for theta, change in changes.items():
        rows += _line(rate=rate, threshold=f"θ = {theta:g} Hz", change=change / largest)
    return rows


def bcm_slides(busy: float = 12.0, quiet: float = 4.0, decay: float = 0.97, target: float = 8.0) -> Rows:
    """The sliding threshold of a neuron that is busy for 100 steps and quiet for 100 more.

    Args:
        busy, quiet: its rates (Hz). decay: as in `bcm_threshold`. target: rate that is its own threshold (Hz).

    Returns:
        ``step``, ``quantity`` ("rate" or "threshold θ"), ``value`` (Hz).
    """
    steps = torch.arange(1, 201)
    rates = torch.cat([torch.full((100,), busy), torch.full((100,), quiet)])
    path = [torch.tensor(target)]
    for rate in rates:
        path.append(bcm_threshold(path[-1], rate, decay, target))
    rows = _line(step=steps, quantity="rate", value=rates)
    return rows + _line(step=steps, quantity="threshold θ", value=torch.stack(path[1:]))


def tagging(
    strong_at: Sequence[int | None] = (None, 30, 300), tag_minutes: float = 60, protein_minutes: float = 60
) -> Rows:
    """The tag of a weakly stimulated synapse, and how much is captured if a strong stimulus elsewhere brings proteins.

    Args:
        strong_at: minute of the strong stimulus, or None for none. tag_minutes, protein_minutes: time constants.

    Returns:
        ``minute``, ``stimulus`` (as text), ``tag`` and ``late`` (the lasting change, both in units of the first tag).
    """
    decay = math.exp(-1 / tag_minutes)
    rows = []
    for strong in strong_at:
        name = "weak alone" if strong is None else f"strong one after {strong} min"
        tag, late = torch.zeros(()), torch.zeros(())
        for minute in range(480):
            stimulus = torch.tensor(1 / (1 - decay) if minute == 0 else 0.0)
            tag = eligibility_trace(tag, stimulus, decay)
            there = strong is not None and minute >= strong
            proteins = 0.05 * math.exp(-(minute - strong) / protein_minutes) if there else 0.0
            late = captured(late, tag, proteins)
            rows.append({"minute": minute, "stimulus": name, "tag": tag.item(), "late": late.item()})
    return rows


def scaling(weights: Sequence[float] = (0.2, 0.5, 1.0), loss: float = 0.5, target: float = 5.0) -> Rows:
    """A neuron that loses a share of its input and, at each step, scales its synapses up by a tenth of what is missing.

    Args:
        weights: initial weights. loss: share of the input that is lost at step 20. target: rate it maintains (Hz).

    Returns:
        ``step``, ``synapse`` (as text), ``weight`` (in the unit of ``weights``), ``rate`` (Hz).
    """
    now = torch.tensor(weights, dtype=torch.float64)
    per_weight = target / now.sum()
    rows = []
    for step in range(100):
        rate = float(now.sum() * per_weight * (1 if step < 20 else 1 - loss))
        now = now + 0.1 * (synaptic_scaling(now, rate, target) - now)
        for number, weight in enumerate(now.tolist(), 1):
            rows.append({"step": step, "synapse": f"synapse {number}", "weight": weight, "rate": rate})
    return rows


def _line(**columns: Tensor | str) -> Rows:
    """The rows of one line of a plot: a tensor gives each row its own value, a string is the same in all rows."""
    length = max(len(column) for column in columns.values() if isinstance(column, Tensor))
    values = [column.tolist() if isinstance(column, Tensor) else [column] * length for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
