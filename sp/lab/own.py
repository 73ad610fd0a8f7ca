"""User-supplied callables and arrays, used where an `sp.lab.experiment.Experiment` otherwise has a name."""

import sys
from dataclasses import dataclass, field
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

    def bare(self) -> "Own":
        """A copy without the content, which a worker need not send back with a result."""
        return Own(self.title, self.digest, None, self.obstacle)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __str__(self) -> str:
        return self.title

    def __reduce__(self) -> tuple:
        # Arrays are passed as they are: joblib shares those above a certain size with its workers instead of copying.
        content = _Code(_with_its_code(self.content)) if callable(self.content) else self.content
        return _again, (self.title, self.digest, content, self.obstacle)


def given(value: Any) -> Any:
    """The content of an `Own`; any other value unchanged."""
    return value.given() if isinstance(value, Own) else value


@dataclass(frozen=True)
class _Code:
    pickled: bytes


def _again(title: str, digest: str, content: Any, obstacle: str | None) -> Own:
    return Own(title, digest, cloudpickle.loads(content.pickled) if isinstance(content, _Code) else content, obstacle)


def _with_its_code(function: Any) -> bytes:
    inner = getattr(function, "func", function)  # of a functools.partial
    names = {getattr(part, "__module__", None) for part in (inner, type(inner))}
    modules = [sys.modules[name] for name in names if name in sys.modules and _is_own(sys.modules[name])]
    known = cloudpickle.list_registry_pickle_by_value()
    new = [module for module in modules if module.__name__ not in known]
    for module in new:
        cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps(function)
    finally:
        for module in new:
            cloudpickle.unregister_pickle_by_value(module)


def _is_own(module: ModuleType) -> bool:
    """Whether it is user code: not ``sp``, an installed package, or ``__main__``, which is pickled by value anyway."""
    name = module.__name__
    return name != "__main__" and name.partition(".")[0] != "sp" and digest.version_of(name) is None
