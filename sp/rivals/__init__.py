"""Learners for a stream: a network with an optimizer, and baselines that do something else with each batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sp.rivals.bounds import ChanceLearner, JointLearner
from sp.rivals.closed_form import RanPACLearner, RidgeLearner, SLDALearner
from sp.rivals.dendritic import ActiveDendritesLearner, GrowingLearner
from sp.rivals.distillation import LwF
from sp.rivals.learner import GradientLearner, Needs, cross_entropy, masked, own_learner
from sp.rivals.optimizers import OPTIMIZERS
from sp.rivals.penalties import EWC, L2, MAS, SI, L2Init, OnlineEWC
from sp.rivals.projections import GPM, NCL, OWM, OnlineOWM
from sp.rivals.rehearsal import AGEM, ERACE, DERpp, Rehearsal, ReplaySource
from sp.rivals.stable import StableSGD

RIVALS: dict[str, type[GradientLearner]] = {
    "active_dendrites": ActiveDendritesLearner,
    "agem": AGEM,
    "dendrites": GrowingLearner,
    "derpp": DERpp,
    "er_ace": ERACE,
    "ewc": EWC,
    "gpm": GPM,
    "joint": JointLearner,
    "l2": L2,
    "l2_init": L2Init,
    "lwf": LwF,
    "mas": MAS,
    "ncl": NCL,
    "online_ewc": OnlineEWC,
    "online_owm": OnlineOWM,
    "owm": OWM,
    "si": SI,
    "stable_sgd": StableSGD,
}
WITHOUT_NETWORK = {"chance": ChanceLearner, "ranpac": RanPACLearner, "ridge": RidgeLearner, "slda": SLDALearner}
OF_RANDOM_FEATURES = ("ranpac", "ridge")
METHODS = (*OPTIMIZERS, *RIVALS, *WITHOUT_NETWORK)
# Names in tables and figures.
TITLES = {
    "active_dendrites": "Active dendrites",
    "adagrad": "Adagrad",
    "adam": "Adam",
    "adamw": "AdamW",
    "agem": "A-GEM",
    "chance": "Chance",
    "coincidence": "Coincidence",
    "consolidating": "Consolidation",
    "dendrites": "Grown dendrites",
    "derpp": "DER++",
    "er_ace": "ER-ACE",
    "ewc": "EWC",
    "gpm": "GPM",
    "joint": "Joint training",
    "l2": "L2",
    "l2_init": "L2-init",
    "lwf": "LwF",
    "mas": "MAS",
    "momentum": "SGD with momentum",
    "ncl": "NCL",
    "online_ewc": "Online EWC",
    "online_owm": "Online OWM",
    "owm": "OWM",
    "ranpac": "RanPAC",
    "ridge": "Ridge",
    "selective": "Selective plasticity",
    "selective_coincidence": "Selective plasticity, NMDA",
    "sgd": "SGD",
    "si": "SI",
    "slda": "SLDA",
    "stable_sgd": "Stable SGD",
    "upgd": "UPGD",
}

__all__ = [
    "METHODS",
    "OPTIMIZERS",
    "TITLES",
    "WITHOUT_NETWORK",
    "GradientLearner",
    "Needs",
    "ReplaySource",
    "cross_entropy",
    "make_learner",
    "masked",
    "needs",
    "rehearses",
]


def needs(method: str, replay_capacity: int = 0) -> Needs:
    """What a method of `METHODS` is told or given, with or without a replay buffer."""
    learner = {**RIVALS, **WITHOUT_NETWORK}.get(method, GradientLearner)
    if not replay_capacity:
        return learner.needs
    return Needs(**{**vars(learner.needs), "examples": "buffer"})


def rehearses(method: str) -> bool:
    """Whether a method manages the replay buffer itself; for others, stored examples are mixed into the batches."""
    return method in RIVALS and issubclass(RIVALS[method], Rehearsal)


def make_learner(
    method: str | Callable[..., Any],
    network: Callable[[], nn.Module],
    sizes: tuple[int, tuple[int, ...], int],
    device: torch.device,
    options: dict[str, Any],
    store: ReplaySource | None = None,
) -> Any:
    """Make a learner of `METHODS`, or of a custom method.

    Args:
        method: its name, or a custom method as for `own_learner`.
        network: function that makes the network on its device.
        sizes: inputs, hidden widths, outputs; methods in `OF_RANDOM_FEATURES` use ``hidden[0]`` and no network.
        device: the device to learn on.
        options: arguments of the optimizer or method.
        store: replay source, for a method that `rehearses`.
    """
    if callable(method):
        return own_learner(method, network(), options)
    if method in OF_RANDOM_FEATURES:
        return WITHOUT_NETWORK[method](sizes[0], sizes[1][0], sizes[2], device, **options)
    if method == "slda":
        return SLDALearner(sizes[0], sizes[2], device, **options)
    if method == "chance":
        return ChanceLearner(sizes[2])
    if method in OPTIMIZERS:
        return GradientLearner(network(), method, options)
    if rehearses(method):
        return RIVALS[method](network(), store, **options)
    return RIVALS[method](network(), **options)
