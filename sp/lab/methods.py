"""Methods by name, including registered ones, and how a comparison resolves the methods it is given."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sp.checks import check_choice
from sp.lab.own import Own
from sp.rivals import METHODS, OPTIMIZERS, TITLES

# Methods not written for classification alone, which also learn numbers, sequences and custom losses.
ANY_LOSS = (*OPTIMIZERS, "joint", "l2", "l2_init", "online_owm", "si", "stable_sgd")

Method = str | Callable[..., Any]
_registered: dict[str, Callable[..., Any]] = {}


def register(name: str, method: Callable[..., Any]) -> None:
    """Make a method available to comparisons by name.

    Args:
        name: a name not in `sp.rivals.METHODS`; a method registered earlier under this name is replaced.
        method: takes a network and options, and returns a `torch.optim.Optimizer` for it or a learner: an object like
            those in `sp.rivals`, with ``needs``, ``learn``, ``logits`` and, if given task boundaries, ``end_task``.
    """
    if name in METHODS:
        raise ValueError(f"name must not be one of this package's own methods, got {name!r}")
    if not callable(method):
        raise TypeError(f"method must be callable, got {method!r}")
    _registered[name] = method


def registered() -> tuple[str, ...]:
    """Names of the registered methods."""
    return tuple(_registered)


def titled(methods: Mapping[str, Method] | Iterable[str]) -> dict[str, str | Own]:
    """Title -> a name in `METHODS` or a user-supplied method.

    Args:
        methods: title -> a name or a callable; or names and callables alone, which get their usual titles.
    """
    if isinstance(methods, str) or callable(methods) or not methods:
        raise ValueError(
            f"methods must be a dict of titles and methods, or a list of names, got {methods!r}: a single method is "
            "{'its title': method}"
        )
    if isinstance(methods, set | frozenset):
        raise TypeError(
            "methods must be in an order, since the first is the baseline, got a set: give a list or a dict"
        )
    if not isinstance(methods, Mapping):
        methods, given = {}, methods
        for method in given:
            if (title := _title(method)) in methods:
                raise ValueError(f"methods has two methods with the title {title!r}: give a dict of titles and methods")
            methods[title] = method
    if "" in methods:
        raise ValueError("the title of a method must not be empty: tables and figures name it")
    if no_text := [title for title in methods if not isinstance(title, str)]:
        raise TypeError(f"the title of a method must be text, got {no_text[0]!r}: write {str(no_text[0])!r}")
    return {title: _resolved(title, method) for title, method in methods.items()}


def _title(method: Any) -> str:
    return TITLES.get(method, method) if isinstance(method, str) else getattr(method, "__name__", str(method))


def _resolved(title: str, method: Any) -> str | Own:
    if callable(method):
        return Own.of(title, method)
    if not isinstance(method, str):
        raise TypeError(
            f"method {title!r} must be a name or a callable that takes a network, such as  lambda model: "
            f"MyOptimizer(model.parameters()) , got {type(method).__name__}: give options in that call, or as tune="
            f"{{{title!r}: {{'lr': [0.01]}}}}"
        )
    if method in _registered:
        return Own.of(title, _registered[method])
    check_choice("method", method, (*METHODS, *_registered))
    return method
