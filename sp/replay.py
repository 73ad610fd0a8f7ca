"""A replay buffer: a bounded memory of examples, mixed into later batches so that old tasks are seen again.

The published training loop samples 32 examples, appends them to the batch of 128 and adds the *whole* result to the
buffer again. A first-in-first-out buffer then holds almost nothing of the old task after a few dozen steps, and even a
reservoir would slowly fill with copies. With `distinct=True`, a row the buffer already holds is not a new example: it
is neither stored again nor counted, so the same loop keeps a uniform sample of everything it has seen.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor

from sp.checks import check_choice, check_flag, check_integer

POLICIES = ("reservoir", "class_balanced", "fifo")


class ReplayBuffer:
    """Keeps up to `capacity` examples of a stream and hands them out at random.

    Args:
        capacity: maximum number of examples, at least 1. Memory for all of them is allocated at the first `add`, on
            the device of its `x`, and does not grow afterwards. `distinct` stores their bytes once more, on the CPU.
        policy: which examples stay once the buffer is full.
            "reservoir": a uniform sample of all examples seen so far (algorithm R; Vitter 1985).
            "class_balanced": as many of each class as the stream allows, a uniform sample within each class
            (class-balancing reservoir sampling; Chrysakis & Moens 2020). Needs one integer label per example.
            "fifo": the latest examples, first in, first out.
        distinct: if True, a row whose x and y the buffer already holds, byte for byte, is neither stored again nor
            counted as seen, and only the first of equal rows in a batch counts. Default (None): True, except for
            "fifo", where copies are the published behaviour.
        seed: seed of the buffer's own random numbers. The global random state is neither read nor changed, and what is
            *kept* does not depend on how often or how much is sampled.

    Attributes:
        seen: number of examples seen so far; with `distinct`, without rows that were already held when they arrived.

    Raises:
        ValueError: capacity < 1, seed < 0, or policy is unknown. TypeError: capacity or seed is not a whole number.
    """

    def __init__(self, capacity: int = 2000, policy: str = "reservoir", distinct: bool | None = None, seed: int = 0):
        check_integer("capacity", capacity, 1)
        check_choice("policy", policy, POLICIES)
        check_integer("seed", seed, 0)
        if distinct is not None:
            check_flag("distinct", distinct)
        self.capacity = int(capacity)
        self.policy = policy
        self.distinct = policy != "fifo" if distinct is None else distinct
        self.seed = seed
        self.seen = 0
        # Two generators, so that runs that differ only in how much they replay still keep the same examples.
        self._keeping = torch.Generator().manual_seed(seed)
        self._sampling = torch.Generator().manual_seed(
            int(torch.randint(2**62, (), generator=self._keeping, device="cpu"))
        )
        self._x: Tensor | None = None
        self._y: Tensor | None = None
        # If rows must be distinct: the content of each slot, and the set of all contents.
        self._content: dict[int, bytes] = {}
        self._held: set[bytes | None] = set()
        self._class_slots: dict[int, list[int]] = {}
        self._class_seen: dict[int, int] = {}
        self._full_classes: set[int] = set()

    def __len__(self) -> int:
        """Number of examples held now, 0 to `capacity`."""
        return min(self.seen, self.capacity)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Offers a batch of examples to the buffer, which copies those it keeps.

        Args:
            x: inputs, shape (B, ...), any dtype but unsigned integers of 16 bits or more, which PyTorch cannot index.
            y: targets, shape (B,) or (B, ...), likewise. For "class_balanced": integers of shape (B,).

        The first batch fixes the shape of a row and both dtypes. Later batches are moved to its device. B may be 0.

        Raises:
            TypeError: x or y is not a tensor, or of a dtype that cannot be stored.
            ValueError: x and y differ in length, or a row differs in shape or dtype from those of the first batch.
        """
        self._check(x, y)
        if len(x) == 0:
            return
        device = x.device if self._x is None else self._x.device
        x, y = x.detach().to(device), y.detach().to(device)
        contents = _contents(x, y) if self.distinct else []
        fresh = self._fresh_rows(contents) if self.distinct else range(len(x))
        slots = self._choose_slots(y, fresh)
        # A slot beyond the last means "not kept". If two rows share a slot, the later wins, as if added one by one.
        self._store(x, y, contents, {slot: row for slot, row in zip(slots, fresh, strict=True) if slot < self.capacity})
        self.seen += len(slots)

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """Draws examples uniformly, without replacement.

        Args:
            n: number of examples, at least 0. If the buffer holds fewer, all of them are returned, in random order.

        Returns:
            x of shape (min(n, len), ...) and its y, as copies on the buffer's device.

        Raises:
            ValueError: n is negative, or the buffer is empty. TypeError: n is not a whole number.
        """
        check_integer("n", n, 0)
        if self._x is None:
            raise ValueError("the replay buffer is empty: call add(x, y) before the first sample(n)")
        chosen = torch.randperm(len(self), generator=self._sampling, device="cpu")[:n].to(self._x.device)
        return self._x[chosen], self._y[chosen]

    def class_counts(self) -> dict[int, int]:
        """Number of examples held for each label, {label: count}, labels ascending; {} for an empty buffer.

        Raises:
            ValueError: y holds more than one number per example.
        """
        if self._y is None:
            return {}
        if self._y.dim() > 1:
            raise ValueError(
                f"class_counts needs one label per example, y of shape (B,); the buffer holds rows of shape "
                f"{tuple(self._y.shape[1:])}: count the y of sample(len(buffer)) instead"
            )
        labels, counts = self._y[: len(self)].unique(return_counts=True)
        return dict(zip(labels.tolist(), counts.tolist(), strict=True))

    def state_dict(self) -> dict:
        """A copy of everything the buffer needs to resume bit for bit; `torch.load(weights_only=True)` can read it."""
        return {
            "capacity": self.capacity,
            "policy": self.policy,
            "distinct": self.distinct,
            "seed": self.seed,
            "seen": self.seen,
            "x": None if self._x is None else self._x[: len(self)].clone(),
            "y": None if self._y is None else self._y[: len(self)].clone(),
            "keeping": self._keeping.get_state(),
            "sampling": self._sampling.get_state(),
            "class_slots": deepcopy(self._class_slots),
            "class_seen": dict(self._class_seen),
            "full_classes": sorted(self._full_classes),
        }

    def load_state_dict(self, state: dict) -> None:
        """Restores what `state_dict` returned: content, on the device of the state's tensors, and random state.

        Raises:
            ValueError: the state comes from a buffer with a different capacity, policy or `distinct`.
        """
        for name in ("capacity", "policy", "distinct"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the state has {name}={state[name]!r} but this buffer has {name}={getattr(self, name)!r}; "
                    f"make the buffer with {name}={state[name]!r} to load it"
                )
        self.seed, self.seen = state["seed"], state["seen"]
        # A generator's state belongs on the CPU, even if torch.load mapped every tensor to another device.
        self._keeping.set_state(state["keeping"].cpu())
        self._sampling.set_state(state["sampling"].cpu())
        self._class_slots = deepcopy(state["class_slots"])
        self._class_seen = dict(state["class_seen"])
        self._full_classes = set(state["full_classes"])
        self._x, self._y, self._content, self._held = None, None, {}, set()
        if state["x"] is not None:
            contents = _contents(state["x"], state["y"]) if self.distinct else []
            self._store(state["x"], state["y"], contents, {slot: slot for slot in range(len(self))})

    def _check(self, x: Tensor, y: Tensor) -> None:
        for name, rows, held in (("x", x, self._x), ("y", y, self._y)):
            if not isinstance(rows, Tensor):
                raise TypeError(
                    f"{name} must be a tensor; got {type(rows).__name__}: make one of it, as with torch.as_tensor"
                )
            if rows.dim() == 0:
                raise ValueError(
                    f"{name} must hold a batch, shape (B, ...); got a single number: add a first dimension"
                )
            if rows.dtype in (torch.uint16, torch.uint32, torch.uint64):
                raise TypeError(f"{name} must not be of dtype {rows.dtype}: convert it, as with {name}.to(torch.int64)")
            if held is not None and (rows.shape[1:] != held.shape[1:] or rows.dtype != held.dtype):
                raise ValueError(
                    f"{name} has rows of shape {tuple(rows.shape[1:])} and {rows.dtype}; the buffer holds rows of "
                    f"shape {tuple(held.shape[1:])} and {held.dtype}: convert {name}, or use another buffer for it"
                )
        if len(x) != len(y):
            raise ValueError(
                f"x and y must each have one row per example; got {len(x)} rows of x and {len(y)} rows of y"
            )
        if self.policy == "class_balanced" and (y.dim() > 1 or y.is_floating_point() or y.is_complex()):
            raise ValueError(
                f"y must hold one integer label per example for policy='class_balanced', shape (B,); got shape "
                f"{tuple(y.shape)} and {y.dtype}: pass class indices, or use policy='reservoir'"
            )

    def _fresh_rows(self, contents: list[bytes]) -> list[int]:
        """The rows, in ascending order, that equal neither a held row nor an earlier row of the batch."""
        fresh: dict[bytes, int] = {}
        for row, content in enumerate(contents):
            if content not in self._held:
                fresh.setdefault(content, row)
        return list(fresh.values())

    def _choose_slots(self, y: Tensor, fresh: Sequence[int]) -> list[int]:
        """The slot of each new row, in order; a slot of `capacity` or more means that the row is not kept."""
        arrivals = range(self.seen, self.seen + len(fresh))
        if self.policy == "fifo":
            return [arrival % self.capacity for arrival in arrivals]
        # Drawn even while the buffer fills, so that the content does not depend on how the stream is cut into batches.
        if self.policy == "reservoir":
            draws = torch.rand(len(fresh), dtype=torch.float64, generator=self._keeping, device="cpu").tolist()
            places = zip(arrivals, draws, strict=True)
            return [arrival if arrival < self.capacity else int(draw * (arrival + 1)) for arrival, draw in places]
        draws = torch.rand(len(fresh), 2, dtype=torch.float64, generator=self._keeping, device="cpu").tolist()
        labels = y.tolist()
        return [
            self._class_balanced_slot(arrival, labels[row], *draw)
            for arrival, row, draw in zip(arrivals, fresh, draws, strict=True)
        ]

    def _class_balanced_slot(self, arrival: int, label: int, which: float, whether: float) -> int:
        own = self._class_slots.setdefault(label, [])
        self._class_seen[label] = self._class_seen.get(label, 0) + 1
        if arrival < self.capacity:
            own.append(arrival)
            return arrival
        if label not in self._full_classes:  # a class that was ever among the largest stays full
            most = max(map(len, self._class_slots.values()))
            largest = [other for other, held in self._class_slots.items() if len(held) == most]
            self._full_classes.update(largest)
        if label in self._full_classes:
            stays = whether < len(own) / self._class_seen[label]
            return own[int(which * len(own))] if stays else self.capacity
        choice = int(which * most * len(largest))
        victims, place = self._class_slots[largest[choice // most]], choice % most
        own.append(victims[place])
        victims[place] = victims[-1]
        victims.pop()
        return own[-1]

    def _store(self, x: Tensor, y: Tensor, contents: list[bytes], row_of_slot: dict[int, int]) -> None:
        if self._x is None:
            with torch.inference_mode(False):  # a tensor made in inference mode cannot be written to outside
                self._x = x.new_empty((self.capacity, *x.shape[1:]))
                self._y = y.new_empty((self.capacity, *y.shape[1:]))
        into, rows = torch.tensor(list(row_of_slot.items()), dtype=torch.long, device=x.device).reshape(-1, 2).T
        self._x[into], self._y[into] = x[rows], y[rows]
        if self.distinct:
            self._held.difference_update(map(self._content.get, row_of_slot))
            self._content.update({slot: contents[row] for slot, row in row_of_slot.items()})
            self._held.update(map(self._content.get, row_of_slot))


def _contents(x: Tensor, y: Tensor) -> list[bytes]:
    """The bytes of each example, x and y together."""
    parts = [rows.reshape(len(rows), -1).contiguous().view(torch.uint8).cpu() for rows in (x, y)]
    width = sum(part.shape[1] for part in parts)
    data = memoryview(bytearray(len(x) * width))
    torch.cat(parts, 1, out=torch.frombuffer(data, dtype=torch.uint8).view(len(x), width))
    return [data[start : start + width].tobytes() for start in range(0, len(data), width)]
