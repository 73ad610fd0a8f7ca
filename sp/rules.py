"""The formulas, each a pure function of tensors with its equation, its range and its source.

P6, P7 and so on refer to the promises of the published module that the project re-implements; see `docs/promises.md`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LARGEST_TRACE = 1e30  # a larger memory has overflowed
SAMPLE = 8192  # number of elements from which a quantile is computed


def eligibility_trace(eligibility: Tensor, gradient: Tensor, decay: float) -> Tensor:
    """Synaptic tag: a decaying record of how much each synapse was used (P6, P12).

    ``e <- decay * e + (1 - decay) * |g|``. A fading record of use is what Frey & Morris (1997) found; that a gradient
    sets it, and that it protects the synapse, is only an analogy. Unlike the trace of three-factor rules (Gerstner et
    al. 2018), it does not wait for a reward.

    Args:
        eligibility: trace so far, any shape, >= 0, in units of the gradient.
        gradient: gradient of the loss, same shape.
        decay: share of the old trace that is kept, in [0, 1).

    Returns:
        The new trace, same shape. Each element lies between the old trace and ``|g|``.
    """
    return decay * eligibility + (1 - decay) * gradient.abs()


def bias_corrected(trace: Tensor, decay: float, steps: Tensor | float) -> Tensor:
    """A trace that started at zero, rescaled to estimate a mean from the first step on (Kingma & Ba 2015, sec. 3).

    ``trace / (1 - decay ** steps)`` for ``steps >= 1``; same shape and units as ``trace``.
    """
    return trace / (1 - decay**steps)


def saturating_ratio(magnitude: Tensor, threshold: Tensor | float) -> Tensor:
    """Synaptic scaling (P14): a magnitude >= 0 in units of a threshold > 0, saturating at one.

    ``min(magnitude / threshold, 1)``, in [0, 1] and without a unit. An infinite threshold gives zero everywhere. This
    is only an analogy to Turrigiano et al. (1998): it scales a record of use, not the weights.
    """
    return (magnitude / threshold).clamp(max=1)


def plasticity_gate(eligibility_norm: Tensor, gradient_norm: Tensor, plasticity_k: float, gate_min: float) -> Tensor:
    """The published gate (P7): the share of an update that a synapse lets through.

    ``clamp(1 - k * e_norm * (1 - g_norm), gate_min, 1)``, in [gate_min, 1]. A synapse is protected if it was used
    before (``e_norm`` high) and is not used now (``g_norm`` low); the gate of an unprotected synapse is 1. The
    published text compares the gate to the NMDA receptor. However, a trace of gradients alone is an analogue of
    metaplasticity (Abraham & Bear 1996); it is `coincidence` that has the receptor's form.

    Args:
        eligibility_norm: normalised eligibility in [0, 1].
        gradient_norm: normalised gradient magnitude in [0, 1], same shape.
        plasticity_k: protection strength, >= 0 (published: 1-3 lenient, 3-7 balanced, 7-10 strict).
        gate_min: floor of the gate, in [0, 1]; the published text does not mention it.
    """
    return (1 - plasticity_k * (eligibility_norm * (1 - gradient_norm))).clamp(gate_min, 1)


def activation_norm(presynaptic: Tensor) -> Tensor:
    """Glutamate (P8): how active each input of a layer was in a batch, in units of the layer's own activity.

    ``min(a / rms(a), 1)``, with ``a_j = sqrt(mean over rows of x_j^2)``; in [0, 1], and zero for a silent input.

    Args:
        presynaptic: inputs X of a layer, (..., N, d); a convolution gives one row per patch.

    Returns:
        One value per input, (..., d).
    """
    power = presynaptic.square().mean(-2)
    return saturating_ratio(power.sqrt(), power.mean(-1, keepdim=True).sqrt()).nan_to_num(0)


def coincidence(activation_norm: Tensor, gradient_norm: Tensor) -> Tensor:
    """NMDA receptor (P8, P9): open where the presynaptic and postsynaptic sides are active together.

    ``a_norm * g_norm``, with both arguments and the result in [0, 1]; zero where either side is absent. It has the form
    of `sp.biology.textbook.nmda_conductance`, with activation instead of glutamate. The gradient instead of the voltage
    is only an analogy: the gradient is itself a product of activity and error, so it is zero wherever one of them is
    zero in every example.
    """
    return activation_norm * gradient_norm


def sampled(tensors: Sequence[Tensor], seed: int) -> Tensor:
    """At most about 8,192 elements of all tensors together, so that nothing large is ever sorted for a quantile.

    Args:
        tensors: must hold at least one element in total; each tensor is sampled in proportion to its size.
        seed: seed of the generator that draws the sample (with replacement). Equal calls give equal results, and the
            global generator is not touched. The standard error of the 0.75 quantile's rank is 0.005.

    Returns:
        A tensor of one dimension on the first tensor's device, in float32 or wider.
    """
    total = sum(tensor.numel() for tensor in tensors)
    drawn = []
    for tensor in tensors:
        values = tensor.detach().flatten()
        if total > SAMPLE:
            generator = torch.Generator(values.device).manual_seed(seed)
            size = (max(1, round(SAMPLE * values.numel() / total)),)
            values = values[torch.randint(values.numel(), size, generator=generator, device=values.device)]
        drawn.append(values.to(tensors[0].device, torch.promote_types(values.dtype, torch.float32)))
    return torch.cat(drawn)


def consolidated_eligibility(consolidated: Tensor, gradient: Tensor) -> Tensor:
    """Synaptic capture: use is recorded permanently (by analogy with Frey & Morris 1997).

    ``C <- C + g^2``, any shape, >= 0, in squared units of the gradient. This is Adagrad's sum (Duchi et al. 2011). Up
    to a factor, it is close to the diagonal Fisher information of EWC (Kirkpatrick et al. 2017) once mean gradients are
    small; but it uses true labels and weights that still change.
    """
    return consolidated + gradient**2


def consolidation_gate(consolidated: Tensor, threshold: Tensor | float) -> Tensor:
    """Metaplasticity (by analogy with Abraham & Bear 1996): plasticity falls as a synapse consolidates.

    ``theta / (theta + C)``, in (0, 1]; one half where ``C`` equals the threshold, which is > 0 and in the units of C.
    """
    return threshold / (threshold + consolidated)


def novelty(memory: Tensor, retention: float) -> Tensor:
    """The part of a presynaptic pattern that is new: ``P = (I + r A)^-1``, (..., d, d), eigenvalues in (0, 1].

    A is the sum of ``X'X`` over all steps, with X a layer's inputs in units of the root of their variance. It is
    task-agnostic. ``x'Px / x'x`` is near 1 for a pattern never seen and near 0 for one seen often. P is the covariance
    of recursive least squares, the soft projector of conceptors (He & Jaeger 2018), and the form of OWM's projector
    (Zeng et al. 2019), here made from every input instead of the means of batches.

    Args:
        memory: A, (..., d, d).
        retention: r > 0; the larger it is, the sooner a pattern counts as known.
    """
    return _inverse_of_one_plus(memory * retention)


def equaliser(errors: Tensor, strength: float) -> Tensor:
    """Postsynaptic scaling (by analogy with Turrigiano et al. 1998): spreads the errors more equally.

    ``Q = (I + c S / s)^-1 tr S / tr((I + c S / s)^-1 S)``, (..., out, out). S is a running mean of products of errors,
    as in K-FAC (Martens & Grosse 2015), and s the mean of its diagonal. A direction that carries k times its fair
    share of the errors is divided by ``1 + c k``. The total power of the errors does not change.
    """
    mean = errors.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] + 1e-30
    damped = _inverse_of_one_plus(errors * (strength / mean))
    passed = (damped * errors).sum((-2, -1), keepdim=True) / errors.shape[-1]
    return damped * torch.where(passed > 0, mean / passed, 1)


def absorbed(norm: Any, mean_norm: Any, absorber: float) -> Any:
    """Adaptive gradient clipping: the norm that a gradient may keep, at most ``absorber`` times its own running mean.

    ``min(|g|, absorber * mean)``, or ``|g|`` while there is no mean yet (0). A task switch makes the gradient jump,
    which must not jolt the network. The arguments are numbers or zero-dimensional tensors.
    """
    if isinstance(norm, Tensor):
        return torch.where(mean_norm > 0, torch.minimum(norm, absorber * mean_norm), norm)
    return min(norm, absorber * mean_norm) if mean_norm > 0 else norm


def bounded(moved: float, largest: float) -> float:
    """Factor in [0, 1] that limits a step, so that a layer's response changes by no more than is allowed.

    ``min(1, largest / moved)``. LARS (You et al. 2017) sets a step in proportion to the weights; this bounds it in
    proportion to the outputs.

    Args:
        moved: root mean square of the change that the whole step would make to the outputs, >= 0.
        largest: root mean square of the largest change that is allowed, > 0.
    """
    return largest / moved if moved > largest else 1.0


def _inverse_of_one_plus(matrix: Tensor) -> Tensor:
    """``(I + M)^-1`` for M >= 0, (..., d, d). M is overwritten. If rounding made it indefinite, negative
    eigenvalues count as zero. Where it has overflowed, as in training that diverges, the result is zero, its limit."""
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    # Single precision takes half the time, and is used while new directions can be resolved next to the heaviest one.
    single = 4 * torch.finfo(torch.float32).eps * diagonal.sum(-1).max() < 0.05
    wide = matrix.to(torch.float32 if single else torch.float64)
    wide.diagonal(dim1=-2, dim2=-1).add_(1)
    factor, failed = torch.linalg.cholesky_ex(wide)
    if failed.any():
        fits = wide.diagonal(dim1=-2, dim2=-1).abs().sum(-1)[..., None, None] < LARGEST_TRACE
        values, vectors = torch.linalg.eigh(torch.where(fits, wide, 0))
        inverse = (vectors / values.clamp(min=1)[..., None, :]) @ vectors.mT
        return torch.where(fits, inverse, 0).to(matrix.dtype)
    return torch.cholesky_inverse(factor).to(matrix.dtype)
