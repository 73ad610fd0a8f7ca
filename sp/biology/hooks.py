"""Hooks that go with whoever registered them."""

import weakref
from collections.abc import Callable
from typing import Any, Self

from torch.utils.hooks import RemovableHandle


class Hooked:
    """What sees through hooks: they come off when it is no longer used, by `remove`, or as a ``with`` block ends."""

    def _hold(self, handles: list[RemovableHandle]) -> None:
        self._finalizer = weakref.finalize(self, _remove_all, handles)

    def remove(self) -> None:
        """Take all hooks off; what was seen so far stays. A second call does nothing."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.remove()


def _remove_all(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def weakly(method: Callable[[Any], None]) -> Callable[..., None]:
    """A hook that calls a method with what it is registered for, and does not keep the method's owner alive."""
    reference = weakref.WeakMethod(method)

    def call(subject: Any, *_) -> None:
        if (alive := reference()) is not None:
            alive(subject)

    return call
