"""Small simulations of single mechanisms, each from the formulas in `sp.rules`: what notebook 04 draws.

Every function gives a tidy table.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from sp import rules


def nmda(glutamate: Sequence[float] = (0.1, 0.5, 1.0), magnesium: float = 1.0) -> pd.DataFrame:
    """Conductance of NMDA receptors against the voltage, for shares of receptors that hold glutamate.

    Returns:
        ``voltage`` (mV), ``glutamate`` (share, as text), ``conductance`` (share of the largest).
    """
    voltage = torch.linspace(-90, 40, 131)
    rows = {s: rules.nmda_conductance(torch.tensor(s), voltage, magnesium) for s in glutamate}
    named = {f"glutamate {s:g}": values for s, values in rows.items()}
    return _lines(named, ("voltage", "glutamate", "conductance"), voltage)


def trace_of_a_burst(decays: Sequence[float], burst: int = 50, steps: int = 600) -> pd.DataFrame:
    """Eligibility of a synapse that is used, |g| = 1, for the first ``burst`` steps and silent afterwards.

    Returns:
        ``step`` (from 1), ``decay`` (as text), ``eligibility`` (in units of that gradient).
    """
    used = torch.arange(steps) < burst
    rows = {}
    for decay in decays:
        e, path = torch.zeros(()), []
        for gradient in used.float():
            e = rules.eligibility_trace(e, gradient, decay)
            path.append(e)
        rows[f"β = {decay:g}"] = torch.stack(path)
    return _lines(rows, ("step", "decay", "eligibility"), torch.arange(1, steps + 1))


def bcm(thresholds: Sequence[float] = (5.0, 10.0), highest: float = 15.0) -> pd.DataFrame:
    """Change of a synapse with presynaptic rate 1 Hz against the postsynaptic rate, for thresholds in Hz.

    Returns:
        ``rate`` (Hz), ``threshold`` (as text), ``change`` (per unit of learning rate, in units of the largest shown).
    """
    rate = torch.linspace(0, highest, 151)
    rows = {theta: rules.bcm_change(torch.ones(()), rate, theta) for theta in thresholds}
    largest = max(values.max() for values in rows.values())
    named = {f"θ = {theta:g} Hz": values / largest for theta, values in rows.items()}
    return _lines(named, ("rate", "threshold", "change"), rate)


def bcm_slides(busy: float = 12.0, quiet: float = 4.0, decay: float = 0.97, target: float = 8.0) -> pd.DataFrame:
    """The sliding threshold of a neuron that is busy for 100 steps and quiet for 100 more.

    Args:
        busy, quiet: its rates (Hz). decay: of the mean squared rate. target: rate that is its own threshold (Hz).

    Returns:
        ``step``, ``quantity`` ("rate" or "threshold θ"), ``value`` (Hz).
    """
    rates = torch.cat([torch.full((100,), busy), torch.full((100,), quiet)])
    threshold, path = torch.tensor(target), []
    for rate in rates:
        threshold = rules.bcm_threshold(threshold, rate, decay, target)
        path.append(threshold)
    named = {"rate": rates, "threshold θ": torch.stack(path)}
    return _lines(named, ("step", "quantity", "value"), torch.arange(1, 201))


def tagging(
    strong_at: Sequence[int | None] = (None, 30, 300), tag_minutes: float = 60, protein_minutes: float = 60
) -> pd.DataFrame:
    """A weakly stimulated synapse: its tag, and what of it is captured if a strong stimulus elsewhere brings proteins.

    Args:
        strong_at: minute of the strong stimulus; None: there is none. tag_minutes, protein_minutes: time constants.

    Returns:
        ``minute``, ``stimulus`` (as text), ``tag`` and ``late`` (the lasting change, both in units of the first tag).
    """
    minutes = np.arange(480)
    decay = float(np.exp(-1 / tag_minutes))
    rows = []
    for strong in strong_at:
        name = "weak alone" if strong is None else f"strong one after {strong} min"
        tag, late = torch.zeros(()), torch.zeros(())
        for minute in minutes:
            stimulus = 1 / (1 - decay) if minute == 0 else 0.0
            tag = rules.eligibility_trace(tag, torch.tensor(stimulus), decay)
            there = strong is not None and minute >= strong
            proteins = 0.05 * float(np.exp(-(minute - strong) / protein_minutes)) if there else 0.0
            late = rules.captured(late, tag, proteins)
            rows.append({"minute": minute, "stimulus": name, "tag": tag.item(), "late": late.item()})
    return pd.DataFrame(rows)


def scaling(weights: Sequence[float] = (0.2, 0.5, 1.0), loss: float = 0.5, target: float = 5.0) -> pd.DataFrame:
    """A neuron that loses a share of its input, and scales its synapses up by a tenth of what is missing at each step.

    Args:
        weights: of its synapses. loss: share of the input that is lost at step 20. target: rate that it keeps (Hz).

    Returns:
        ``step``, ``synapse`` (as text), ``weight`` (in units of the first largest), ``rate`` (Hz).
    """
    now = torch.tensor(weights, dtype=torch.float64)
    per_weight = target / now.sum()
    rows = []
    for step in range(100):
        rate = float(now.sum() * per_weight * (1 if step < 20 else 1 - loss))
        now = now + 0.1 * (rules.synaptic_scaling(now, rate, target) - now)
        for number, weight in enumerate(now.tolist(), 1):
            rows.append({"step": step, "synapse": f"synapse {number}", "weight": weight, "rate": rate})
    return pd.DataFrame(rows)


def gate_of_use(highest: float = 1e3) -> pd.DataFrame:
    """The accumulating gate against what a synapse has captured.

    Returns:
        ``used`` (C in units of θ), ``rule`` (as text), ``gate``.
    """
    used = torch.logspace(-3, float(np.log10(highest)), 121)
    named = {"θ / (θ + C)": rules.consolidation_gate(used, 1.0)}
    return _lines(named, ("used", "rule", "gate"), used)


def _lines(lines: dict[str, torch.Tensor], names: tuple[str, str, str], places: torch.Tensor) -> pd.DataFrame:
    x, hue, y = names
    return pd.concat(
        [pd.DataFrame({x: places, hue: name, y: values.numpy()}) for name, values in lines.items()], ignore_index=True
    )
