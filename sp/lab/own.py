"""User-supplied callables and arrays, used where an `sp.lab.experiment.Experiment` otherwise has a name."""

import io
import sys
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any
from uuid import uuid4

import cloudpickle

from sp.lab import digest


@dataclass(frozen=True, eq=False)
class Own:
    """A user-supplied callable or stream of arrays. Two are equal if their digests are equal.

    A pickled callable carries its code, even if that is in a notebook cell or a file that cannot be imported elsewhere,
    so worker processes and cluster machines do not need a copy.

    Attributes:
        title: its name in tables; not part of its identity.
        digest: computed from its code and content (`sp.lab.digest.digest`), or a unique name if that is impossible.
        content: the callable or stream; None if this was read from a ledger.
        obstacle: why there is no digest, in which case runs with it are not stored; None if there is one.
    """

    title: str
    digest: str
    content: Any = field(default=None, repr=False)
    obstacle: str | None = None

    @classmethod
    def of(cls, title: str, content: Any, counts_as: Any = None) -> "Own":
        """Wrap the content, with its digest or that of ``counts_as`` if given."""
        stands_for = content if counts_as is None else counts_as
        try:
            return cls(title, digest.digest(stands_for), content)
        except digest.NoDigest as reason:
            return cls(title, f"without digest {uuid4().hex}", content, str(reason))

    def given(self) -> Any:
        """The content; raises ValueError if there is none."""
        if self.content is None:
            raise ValueError(
                f"{self.title!r} was read from a ledger, which has only its digest: give it again to run it"
            )
        return self.content

    def as_dict(self) -> dict[str, str]:
        """The part that a ledger row stores."""
        return {"title": self.title, "digest": self.digest}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __str__(self) -> str:
        return self.title

    def __reduce__(self) -> tuple:
        # Arrays are passed as they are: joblib shares those above a certain size with its workers instead of copying.
        content = self._code if callable(self.content) else self.content
        return _again, (self.title, self.digest, content, self.obstacle)

    @cached_property
    def _code(self) -> "_Code":
        return _Code(_with_its_code(self.content))  # kept, because every run sends it


def given(value: Any) -> Any:
    """The content of an `Own`; any other value unchanged."""
    return value.given() if isinstance(value, Own) else value


@dataclass(frozen=True)
class _Code:
    pickled: bytes


def _again(title: str, digest: str, content: Any, obstacle: str | None) -> Own:
    return Own(title, digest, cloudpickle.loads(content.pickled) if isinstance(content, _Code) else content, obstacle)


_OF_THE_IMPORT = ("__builtins__", "__loader__", "__spec__")


class _Pickler(cloudpickle.Pickler):
    """Also pickles modules by value that import each other, which cloudpickle cannot do."""

    def reducer_override(self, thing: Any) -> Any:
        if type(thing) is ModuleType and thing.__name__ in cloudpickle.list_registry_pickle_by_value():
            kept = {name: value for name, value in vars(thing).items() if name not in _OF_THE_IMPORT}
            return ModuleType, (thing.__name__,), kept
        return super().reducer_override(thing)


def _with_its_code(function: Any) -> bytes:
    # By reference, a worker would use the helper modules as they were when it first imported them.
    known = cloudpickle.list_registry_pickle_by_value()
    new = [module for name, module in list(sys.modules.items()) if name not in known and _is_own(name, module)]
    for module in new:
        cloudpickle.register_pickle_by_value(module)
    try:
        file = io.BytesIO()
        _Pickler(file).dump(function)
        return file.getvalue()
    finally:
        for module in new:
            cloudpickle.unregister_pickle_by_value(module)


def _is_own(name: str, module: Any) -> bool:
    """Whether it is user code: not ``sp``, an installed package, or ``__main__``, which is pickled by value anyway."""
    if type(module) is not ModuleType or module.__name__ != name or name == "__main__":
        return False
    # A namespace package has no code of its own, but may contain installed packages.
    is_namespace = hasattr(module, "__path__") and getattr(module, "__file__", None) is None
    return not is_namespace and name.partition(".")[0] != "sp" and digest.version_of(name) is None
