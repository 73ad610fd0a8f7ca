"""The code that a panel offers for copying."""

from typing import Any

NAMES = {
    "adagrad": "torch.optim.Adagrad",
    "adam": "torch.optim.Adam",
    "coincidence": "ConsolidatingPlasticityOptimizer",
    "consolidating": "ConsolidatingPlasticityOptimizer",
    "selective_coincidence": "SelectivePlasticityOptimizer",
    "selective": "SelectivePlasticityOptimizer",
    "sgd": "torch.optim.SGD",
}
COMPARISON = """{partial}import torch

from sp.lab import Stream, compare
{own}
runs = compare(
    {{
        {method!r}: {rule},
        "Adam": lambda model: torch.optim.Adam(model.parameters(), lr={adam_lr}),
    }},
    Stream.split("digits", tasks=2),
    seeds=[{seed}],
    replay_capacity={replay_capacity},
)"""


def optimizer_code(optimizer: str, options: dict[str, Any], replay_capacity: int = 0, seed: int = 0) -> str:
    """Python code that makes an optimizer for a ``model``, and a replay buffer if there is one.

    Args:
        optimizer: a name in `sp.rivals.OPTIMIZERS`. options: its arguments.
        replay_capacity: size of the buffer; 0 for none. seed: seed of the buffer.
    """
    name = NAMES[optimizer]
    imports = set() if "." in name else {name}
    lines = ["    model.parameters(),", *(f"    {option}={value!r}," for option, value in options.items())]
    if "coincidence" in optimizer:
        imports.add("NMDACoincidence")
        lines.append("    coincidence=NMDACoincidence(model),")
    made = [f"optimizer = {name}(", *lines, ")"]
    if replay_capacity:
        imports.add("ReplayBuffer")
        made.append(f"buffer = ReplayBuffer(capacity={replay_capacity}, seed={seed})")
    heads = ["import torch"] if "." in name else []
    heads += [f"from sp import {', '.join(sorted(imports))}"] if imports else []
    return "\n".join([*heads, "", *made])


def comparison_code(
    method: str, name: str | None, options: dict[str, Any], replay_capacity: int, seed: int, adam_lr: float
) -> str:
    """Python code that compares a method, titled ``method``, with Adam, as the learning panel does.

    Args:
        name: its name in `sp.rivals.METHODS`; None for a custom method. options: arguments of a custom method.
        adam_lr: learning rate of Adam.
    """
    given = "".join(f", {option}={value!r}" for option, value in options.items())
    is_own = name is None
    return COMPARISON.format(
        partial="from functools import partial\n" if is_own else "",
        own=f"\nown = ...  # {method}" if is_own else "",
        method=method,
        rule=f"partial(own{given})" if is_own else repr(name),
        replay_capacity=replay_capacity,
        seed=seed,
        adam_lr=adam_lr,
    )
