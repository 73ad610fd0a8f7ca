"""Somebody's own callable or arrays where an `sp.lab.experiment.Experiment` otherwise has a name."""

import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from uuid import uuid4

import cloudpickle

from sp.lab import digest


@dataclass(frozen=True, eq=False)
class Own:
    """A callable or a stream of arrays, equal to another one when their digests are equal.

    Pickled, a callable carries its code with it, also that of a notebook's cell or of a file that cannot be imported
    elsewhere, so that worker processes and the machines of a cluster need not have it.

    Attributes:
        title: what tables call it; no part of what it is.
        digest: of its code and content (`sp.lab.digest.digest`), or a name that no other has where none can be made.
        content: the callable or stream; None in what was read from a ledger.
        obstacle: why there is no digest, and a run with it is not kept; None where there is one.
    """

    title: str
    digest: str
    content: Any = field(default=None, repr=False)
    obstacle: str | None = None

    @classmethod
    def of(cls, title: str, content: Any, counts_as: Any = None) -> "Own":
        """With the digest of the content, or of ``counts_as`` in its place."""
        stands_for = content if counts_as is None else counts_as
        try:
            return cls(title, digest.digest(stands_for), content)
        except digest.NoDigest as reason:
            return cls(title, f"without digest {uuid4().hex}", content, str(reason))

    def given(self) -> Any:
        """The content; a ValueError where there is none."""
        if self.content is None:
            raise ValueError(
                f"{self.title!r} was read from a ledger, which has its digest only: give it again to run it"
            )
        return self.content

    def as_dict(self) -> dict[str, str]:
        """What a row of a ledger keeps of it."""
        return {"title": self.title, "digest": self.digest}

    def bare(self) -> "Own":
        """Without the content, which a result need not carry from a worker."""
        return Own(self.title, self.digest, None, self.obstacle)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __str__(self) -> str:
        return self.title

    def __reduce__(self) -> tuple:
        # Arrays go as they are: joblib shares those of a certain size with its workers instead of copying them.
        content = _Code(_with_its_code(self.content)) if callable(self.content) else self.content
        return _again, (self.title, self.digest, content, self.obstacle)


def given(value: Any) -> Any:
    """The content of an `Own`, anything else as it is."""
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
    """Of neither this package nor another installed one, nor the script or notebook, which goes by value anyway."""
    name = module.__name__
    return name != "__main__" and name.partition(".")[0] != "sp" and digest.version_of(name) is None
