"""Methods by name, also those of one's own, and how a comparison takes what it is given."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sp.checks import check_choice
from sp.lab.own import Own
from sp.rivals import METHODS, OPTIMIZERS, TITLES

# What is not written for classes alone, and so learns numbers, sequences and losses of one's own.
ANY_LOSS = (*OPTIMIZERS, "joint", "l2", "l2_init", "si", "stable_sgd")

Method = str | Callable[..., Any]
_registered: dict[str, Callable[..., Any]] = {}


def register(name: str, method: Callable[..., Any]) -> None:
    """Let comparisons know a method by a name.

    Args:
        name: another than those of `sp.rivals.METHODS`; one that was registered before is replaced.
        method: gives, of a network and options, a `torch.optim.Optimizer` of it or a learner: a class such as those in
            `sp.rivals`, with ``needs``, ``learn``, ``logits`` and, where it is told of boundaries, ``end_task``.
    """
    if name in METHODS:
        raise ValueError(f"name must not be that of a method of this package, got {name!r}")
    if not callable(method):
        raise TypeError(f"method must be callable, got {method!r}")
    _registered[name] = method


def registered() -> tuple[str, ...]:
    """Names of the methods that were registered."""
    return tuple(_registered)


def titled(methods: Mapping[str, Method] | Iterable[str]) -> dict[str, str | Own]:
    """Title -> a name of `METHODS` or somebody's own.

    Args:
        methods: title -> a name or a callable; or these alone, which have their usual titles.
    """
    if isinstance(methods, str) or not methods:
        raise ValueError(f"methods must be a dict of titles and methods, or a list of names, got {methods!r}")
    if not isinstance(methods, Mapping):
        methods = {_title(name): name for name in methods}
    return {title: _resolved(title, method) for title, method in methods.items()}


def _title(method: Any) -> str:
    return TITLES.get(method, method) if isinstance(method, str) else getattr(method, "__name__", str(method))


def _resolved(title: str, method: Any) -> str | Own:
    if callable(method):
        return Own.of(title, method)
    if not isinstance(method, str):
        raise TypeError(
            f"method {title!r} must be a name or something to call with a network, such as  lambda model: "
            f"MyOptimizer(model.parameters()) , got {type(method).__name__}: give options in that call, or as tune="
            f"{{{title!r}: {{'lr': [0.01]}}}}"
        )
    if method in _registered:
        return Own.of(title, _registered[method])
    check_choice("method", method, (*METHODS, *_registered))
    return method
