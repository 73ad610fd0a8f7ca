"""A replay buffer: a bounded memory of examples, mixed into later batches so that old tasks are seen again.

The published training loop samples 32 examples, concatenates them to the batch of 128 and adds the *whole* of it to the
buffer again. A first-in-first-out buffer then holds almost nothing of the old task after a few dozen steps, and even a
reservoir would slowly fill with copies. With `distinct=True` a row the buffer already holds is not a new example: it is
neither stored again nor counted, so the same loop keeps a uniform sample of everything it has met.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sp.checks import check_choice, check_flag, check_integer

POLICIES = ("reservoir", "class_balanced", "fifo")


class ReplayBuffer:
    """Keeps up to `capacity` examples of a stream and hands them out at random.

    Args:
        capacity: the most examples held, at least 1. Memory for all of them is taken at the first `add`, on the device
            of its `x`, and does not grow afterwards.
        policy: which examples stay once the buffer is full.
            "reservoir": a uniform sample of all examples met so far (algorithm R; Vitter 1985).
            "class_balanced": as many of each class as the stream allows, a uniform sample within each class
            (class-balancing reservoir sampling; Chrysakis & Moens 2020). Needs one integer label an example.
            "fifo": the latest ones, first in, first out.
        distinct: a row whose x and y the buffer holds already, byte for byte, is neither stored again nor counted as
            met, and of equal rows in one batch only the first counts. Default (None): True, except for "fifo", where
            copies are the published behaviour.
        seed: of the buffer's own random numbers. The global random state is neither read nor changed, and what is
            *kept* does not depend on how often, or how much, is sampled.

    Attributes:
        seen: how many examples were met so far; with `distinct`, without the rows that were held when they came.

    Raises:
        ValueError: capacity below 1, seed below 0, an unknown policy. TypeError: one that is not a whole number.
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
        # Two generators, so that runs that differ only in how much they replay still share what the buffer holds.
        self._keeping = torch.Generator().manual_seed(seed)
        self._sampling = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=self._keeping)))
        self._x: Tensor | None = None
        self._y: Tensor | None = None
        self._class_slots: dict[int, list[int]] = {}
        self._class_seen: dict[int, int] = {}
        self._full_classes: set[int] = set()

    def __len__(self) -> int:
        """Examples held now, 0 to `capacity`."""
        return min(self.seen, self.capacity)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Offers a batch of examples to the buffer, which copies those it keeps.

        Args:
            x: inputs, shape (B, ...), any dtype.
            y: targets, shape (B,) or (B, ...), any dtype. For "class_balanced" (B,), integers.

        The first batch fixes the shape of a row and both dtypes; later ones are moved to its device. B = 0 is allowed.

        Raises:
            TypeError: x or y is not a tensor.
            ValueError: x and y differ in length, or a row differs in shape or dtype from those of the first batch.
        """
        x, y = self._checked(x, y)
        if len(x) == 0:
            return
        if self._x is None:
            self._allocate(x, y)
        x, y = x.to(self._x.device), y.to(self._x.device)

        hashes = self._hash(x, y) if self.distinct else []
        fresh = self._fresh_rows(x, y, hashes) if self.distinct else range(len(x))
        slots = self._choose_slots(y, fresh)
        # A slot beyond the last means "not kept"; of two rows for one slot a dict keeps the later, as one by one would.
        row_of_slot = {slot: row for row, slot in zip(fresh, slots, strict=True) if slot < self.capacity}
        if row_of_slot:
            into, rows = torch.tensor([*row_of_slot.items()], device=x.device).T
            self._x[into], self._y[into] = x[rows], y[rows]
        if self.distinct:
            for slot, row in row_of_slot.items():
                self._index(slot, hashes[row])
        self.seen += len(slots)

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """Draws examples uniformly, without replacement.

        Args:
            n: how many, at least 0. More than the buffer holds returns all it holds, in random order.

        Returns:
            x of shape (min(n, len), ...) and its y, copies on the buffer's device.

        Raises:
            ValueError: n is negative, or the buffer is empty. TypeError: n is not whole.
        """
        check_integer("n", n, 0)
        if self._x is None:
            raise ValueError("the replay buffer is empty; add(x, y) before the first sample(n)")
        chosen = torch.randperm(len(self), generator=self._sampling)[:n].to(self._x.device)
        return self._x[chosen], self._y[chosen]

    def class_counts(self) -> dict[int, int]:
        """How many examples of each label are held, {label: count}, labels ascending; {} for an empty buffer.

        Raises:
            ValueError: y holds more than one number an example.
        """
        if self._y is None:
            return {}
        if self._y.dim() > 1:
            raise ValueError(
                f"class_counts needs one label an example, y of shape (B,); the buffer holds rows of shape "
                f"{tuple(self._y.shape[1:])}: count the y of sample(len(buffer)) instead"
            )
        labels, counts = self._y[: len(self)].unique(return_counts=True)
        return dict(zip(labels.tolist(), counts.tolist(), strict=True))

    def state_dict(self) -> dict:
        """A copy of everything the buffer needs to go on bit for bit; `torch.load(weights_only=True)` reads it back."""
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
            "class_slots": {label: list(slots) for label, slots in self._class_slots.items()},
            "class_seen": dict(self._class_seen),
            "full_classes": sorted(self._full_classes),
        }

    def load_state_dict(self, state: dict) -> None:
        """Takes over what `state_dict` returned: content, on the device of the state's tensors, and random state.

        Raises:
            ValueError: the state comes from a buffer of another capacity, policy or `distinct`.
        """
        for name in ("capacity", "policy", "distinct"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the state has {name}={state[name]!r} but this buffer has {name}={getattr(self, name)!r}; "
                    f"make the buffer with {name}={state[name]!r} to load it"
                )
        self.seed, self.seen = state["seed"], state["seen"]
        # A generator's state lives on the CPU even where torch.load mapped every tensor to another device.
        self._keeping.set_state(state["keeping"].cpu())
        self._sampling.set_state(state["sampling"].cpu())
        self._class_slots = {label: list(slots) for label, slots in state["class_slots"].items()}
        self._class_seen = dict(state["class_seen"])
        self._full_classes = set(state["full_classes"])
        self._x = self._y = None
        if state["x"] is not None:
            held = len(self)
            self._allocate(state["x"], state["y"])
            self._x[:held], self._y[:held] = state["x"], state["y"]
            if self.distinct:
                for slot, content in enumerate(self._hash(state["x"], state["y"])):
                    self._index(slot, content)

    # -- what comes in --

    def _checked(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        for name, rows, held in (("x", x, self._x), ("y", y, self._y)):
            if not isinstance(rows, Tensor):
                raise TypeError(f"{name} must be a tensor; got {type(rows).__name__}: wrap it with torch.as_tensor")
            if rows.dim() == 0:
                raise ValueError(
                    f"{name} must hold a batch, shape (B, ...); got a single number: add a first dimension"
                )
            if held is not None and (rows.shape[1:] != held.shape[1:] or rows.dtype != held.dtype):
                raise ValueError(
                    f"{name} has rows of shape {tuple(rows.shape[1:])} and {rows.dtype}; the buffer holds rows of "
                    f"shape {tuple(held.shape[1:])} and {held.dtype}: convert {name}, or use another buffer for it"
                )
        if len(x) != len(y):
            raise ValueError(
                f"x and y must have one row an example each; got {len(x)} rows of x and {len(y)} rows of y"
            )
        if self.policy == "class_balanced" and (y.dim() > 1 or y.is_floating_point() or y.is_complex()):
            raise ValueError(
                f"y must hold one integer label an example for policy='class_balanced', shape (B,); got shape "
                f"{tuple(y.shape)} and {y.dtype}: pass class indices, or use policy='reservoir'"
            )
        return x.detach(), y.detach()

    def _allocate(self, x: Tensor, y: Tensor) -> None:
        self._x = x.new_empty((self.capacity, *x.shape[1:]))
        self._y = y.new_empty((self.capacity, *y.shape[1:]), device=x.device)
        if self.distinct:
            self._hash_of: dict[int, int] = {}
            self._slots_of: dict[int, set[int]] = {}
            self._multipliers = _odd_numbers(_words(self._x).shape[1] + _words(self._y).shape[1], x.device)

    # -- which rows are new --

    def _hash(self, x: Tensor, y: Tensor) -> list[int]:
        """64 bits of content for each row: a sum of products modulo 2^64."""
        x_words, y_words = _words(x), _words(y)
        x_multipliers, y_multipliers = self._multipliers.split([x_words.shape[1], y_words.shape[1]])
        return ((x_words * x_multipliers).sum(1) + (y_words * y_multipliers).sum(1)).tolist()

    def _index(self, slot: int, content: int) -> None:
        """Notes that `slot` now holds a row of this hash, and no longer the one it held."""
        if slot in self._hash_of:
            others = self._slots_of[self._hash_of[slot]]
            others.remove(slot)
            if not others:
                del self._slots_of[self._hash_of[slot]]
        self._hash_of[slot] = content
        self._slots_of.setdefault(content, set()).add(slot)

    def _fresh_rows(self, x: Tensor, y: Tensor, hashes: list[int]) -> list[int]:
        """The rows, ascending, that equal neither a held row nor an earlier row of the batch.

        Rows of one hash are compared word by word, so a collision costs a comparison and never an example.
        """
        x, y, x_held, y_held = _words(x), _words(y), _words(self._x), _words(self._y)
        held = set()
        candidates = [(row, slot) for row, content in enumerate(hashes) for slot in self._slots_of.get(content, ())]
        if candidates:
            rows, slots = torch.tensor(candidates, device=x.device).T
            same = (x[rows] == x_held[slots]).all(1) & (y[rows] == y_held[slots]).all(1)
            held.update(rows[same].tolist())

        fresh, fresh_of_hash = [], {}
        for row, content in enumerate(hashes):
            if row not in held:
                alike = fresh_of_hash.setdefault(content, [])
                if not any(torch.equal(x[row], x[other]) and torch.equal(y[row], y[other]) for other in alike):
                    alike.append(row)
                    fresh.append(row)
        return fresh

    # -- which slot a new row takes --

    def _choose_slots(self, y: Tensor, fresh: Sequence[int]) -> list[int]:
        """The slot of each new row, in order; a number of `capacity` or more means that the row is not kept."""
        if self.policy == "fifo":
            return [(self.seen + arrival) % self.capacity for arrival in range(len(fresh))]
        if self.policy == "reservoir":
            return self._reservoir_slots(len(fresh))
        labels = y.tolist()
        return self._class_balanced_slots([labels[row] for row in fresh])

    def _reservoir_slots(self, count: int) -> list[int]:
        arrival = torch.arange(self.seen, self.seen + count)
        # Drawn while the buffer fills, too: then the content does not depend on how the stream was cut into batches.
        draws = torch.rand(count, dtype=torch.float64, generator=self._keeping)
        return torch.where(arrival < self.capacity, arrival, (draws * (arrival + 1)).long()).tolist()

    def _class_balanced_slots(self, labels: list[int]) -> list[int]:
        draws = torch.rand(len(labels), 2, dtype=torch.float64, generator=self._keeping).tolist()
        slots = []
        for arrival, (label, (which, whether)) in enumerate(zip(labels, draws, strict=True), start=self.seen):
            own = self._class_slots.setdefault(label, [])
            self._class_seen[label] = self._class_seen.get(label, 0) + 1
            if arrival < self.capacity:
                own.append(arrival)
                slots.append(arrival)
                continue
            most = max(map(len, self._class_slots.values()))
            largest = [other for other, held in self._class_slots.items() if len(held) == most]
            self._full_classes.update(largest)
            if label not in self._full_classes:
                choice = int(which * most * len(largest))
                victims, place = self._class_slots[largest[choice // most]], choice % most
                own.append(victims[place])
                slots.append(victims[place])
                victims[place] = victims[-1]
                victims.pop()
            elif whether < len(own) / self._class_seen[label]:
                slots.append(own[int(which * len(own))])
            else:
                slots.append(self.capacity)
        return slots


def _words(rows: Tensor) -> Tensor:
    """The bytes of each row as integers, shape (B, words), in the widest type that divides a row."""
    flat = (rows.flatten(1) if rows.dim() > 1 else rows.unsqueeze(1)).contiguous()
    size = flat.shape[1] * flat.element_size()
    word = next(word for word in (torch.int64, torch.int32, torch.uint8) if size % word.itemsize == 0)
    if flat.storage_offset() * flat.element_size() % word.itemsize:
        flat = flat.clone()  # view(dtype) refuses a tensor that starts in the middle of a word
    return flat.view(word)


def _odd_numbers(count: int, device: torch.device) -> Tensor:
    # Any fixed seed would do; odd, because an odd factor loses no bit of the word it multiplies.
    generator = torch.Generator().manual_seed(1)
    return (torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator) | 1).to(device)
