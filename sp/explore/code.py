"""The code that a panel gives to paste."""

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


def optimizer_code(optimizer: str, options: dict[str, Any], replay_capacity: int = 0, seed: int = 0) -> str:
    """Python code that makes an optimizer of a ``model``, and a replay buffer where there is one.

    Args:
        optimizer: a name in `sp.rivals.OPTIMIZERS`. options: its arguments.
        replay_capacity: of the buffer; 0 for none. seed: of the buffer.
    """
    name = NAMES[optimizer]
    watched = "coincidence" in optimizer
    imports = [*([] if "." in name else [name]), *(["NMDACoincidence"] if watched else [])]
    lines = ["    model.parameters(),", *(f"    {option}={value!r}," for option, value in options.items())]
    lines += ["    coincidence=NMDACoincidence(model),"] if watched else []
    made = "\n".join([f"optimizer = {name}(", *lines, ")"])
    if replay_capacity:
        imports.append("ReplayBuffer")
        made += f"\nbuffer = ReplayBuffer(capacity={replay_capacity}, seed={seed})"
    heads = ["import torch"] if "." in name else []
    heads += [f"from sp import {', '.join(sorted(imports))}"] if imports else []
    return "\n".join([*heads, "", made])


def comparison_code(method: str, options: dict[str, Any], replay_capacity: int = 0, seed: int = 0) -> str:
    """Python code that compares somebody's own ``method`` with Adam, as the learning panel does.

    Args: as of `optimizer_code`; ``method`` is a title.
    """
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return "\n".join(
        [
            "from functools import partial",
            "from sp.lab import Stream, compare",
            "",
            f"own = ...  # {method}",
            "runs = compare(",
            f'    {{{method!r}: partial(own{given}), "Adam": "adam"}},',
            '    Stream.split("digits", tasks=2),',
            f"    seeds=[{seed}],",
            f"    replay_capacity={replay_capacity},",
            ")",
        ]
    )
