"""The formulas, each a pure function of tensors with its equation, its range and its source. No state, no loops.

P6, P7 and so on name the promises of the published module that the project re-implements.
"""

import torch
from torch import Tensor


def eligibility_trace(eligibility: Tensor, gradient: Tensor, decay: float) -> Tensor:
    """Synaptic tag: a decaying record of how much each synapse was used (P6).

    ``e <- decay * e + (1 - decay) * |g|``

    Args:
        eligibility: trace so far, any shape, >= 0, in units of the gradient.
        gradient: gradient of the loss, same shape.
        decay: share of the old trace that is kept, in [0, 1).

    Returns:
        The new trace, same shape: it lies between the old trace and ``|g|`` element by element.
    """
    return decay * eligibility + (1 - decay) * gradient.abs()


def bias_corrected(trace: Tensor, decay: float, steps: Tensor | float) -> Tensor:
    """A trace that began at zero, scaled so that it estimates a mean from the first step on (Kingma & Ba 2015, sec. 3).

    ``trace / (1 - decay ** steps)`` for ``steps >= 1``; same shape and units as ``trace``.
    """
    return trace / (1 - decay**steps)


def saturating_ratio(magnitude: Tensor, threshold: Tensor | float) -> Tensor:
    """Synaptic scaling (P14): a magnitude >= 0 in units of a threshold > 0, saturating at one.

    ``min(magnitude / threshold, 1)``, in [0, 1] and without a unit. An infinite threshold gives zero everywhere.
    """
    return (magnitude / threshold).clamp(max=1)


def protection(eligibility_norm: Tensor, gradient_norm: Tensor) -> Tensor:
    """How strongly a synapse is protected (P7): it was used (``e_norm`` high) and is not used now (``g_norm`` low).

    ``e_norm * (1 - g_norm)``, both arguments and the result in [0, 1].
    """
    return eligibility_norm * (1 - gradient_norm)


def plasticity_gate(eligibility_norm: Tensor, gradient_norm: Tensor, plasticity_k: float, gate_min: float) -> Tensor:
    """The published gate (P7): the share of an update that a synapse lets through.

    ``clamp(1 - k * e_norm * (1 - g_norm), gate_min, 1)``, in [gate_min, 1]; 1 for a synapse without protection.

    Args:
        eligibility_norm: normalised eligibility in [0, 1].
        gradient_norm: normalised gradient magnitude in [0, 1], same shape.
        plasticity_k: protection strength, >= 0 (published: 1-3 lenient, 3-7 balanced, 7-10 strict).
        gate_min: floor of the gate in [0, 1], on which the published text is silent.
    """
    return (1 - plasticity_k * protection(eligibility_norm, gradient_norm)).clamp(gate_min, 1)


def sampled_quantile(values: Tensor, fraction: float, seed: int, sample: int = 8192) -> Tensor:
    """Quantile of a tensor's elements, from at most ``sample`` of them, so that a large tensor is never sorted.

    Args:
        values: any shape with at least one element.
        fraction: which quantile, in [0, 1]; linear interpolation between neighbours.
        seed: of the generator that draws the sample (with replacement), so that equal calls give equal results
            and the global generator is left alone.
        sample: largest number of elements that are sorted. With 8,192 the standard error of the 0.75 quantile's
            rank is 0.005.

    Returns:
        A tensor without dimensions, on the same device, in float32 or wider.
    """
    values = values.detach().flatten()
    if values.numel() > sample:
        generator = torch.Generator(values.device).manual_seed(seed)
        index = torch.randint(values.numel(), (sample,), generator=generator, device=values.device)
        values = values[index]
    return values.to(torch.promote_types(values.dtype, torch.float32)).quantile(fraction)
