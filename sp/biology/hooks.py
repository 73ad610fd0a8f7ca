"""Hooks that are removed together with the object that registered them."""

import weakref
from collections.abc import Callable
from typing import Any, Self

from torch.utils.hooks import RemovableHandle


class Hooked:
    """An object with hooks, which are removed when it is no longer used, by `remove`, or when a ``with`` block ends."""

    def _hold(self, handles: list[RemovableHandle]) -> None:
        self._finalizer = weakref.finalize(self, _remove_all, handles)

    def remove(self) -> None:
        """Remove all hooks; what was recorded so far stays. A second call does nothing."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.remove()


def _remove_all(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def weakly(method: Callable[[Any], None]) -> Callable[..., None]:
    """A hook that calls a method with the object it is registered on, without keeping the method's owner alive."""
    reference = weakref.WeakMethod(method)

    def call(subject: Any, *_) -> None:
        if (alive := reference()) is not None:
            alive(subject)

    return call
