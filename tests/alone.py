"""With only torch installed, the optimizers train, and what needs more says how to get it: ``make test-alone``."""

import subprocess
import sys

import torch
from torch import nn

import selective_plasticity
from sp import (
    ConsolidatingPlasticityOptimizer,
    NMDACoincidence,
    PlasticityCounter,
    ReplayBuffer,
    SelectivePlasticityOptimizer,
)

NEEDED = "install what is missing with  pip install 'selective-plasticity[lab]'"


def learns(kind, watched=False, **options) -> bool:
    """Whether a few counted steps with replay change every parameter of a small network and leave it finite."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    watcher = NMDACoincidence(model) if watched else None
    optimizer = kind(model.parameters(), warmup_steps=5, coincidence=watcher, **options)
    buffer, events = ReplayBuffer(12), PlasticityCounter(model, every=1)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(10):
        x, y = torch.randn(2, 8), torch.randint(3, (2,))
        buffer.add(x, y)
        old_x, old_y = buffer.sample(4)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.cat([x, old_x])), torch.cat([y, old_y])).backward()
        optimizer.step()
    assert len(buffer) == 12 and [row["looks"] for row in events.rows()] == [10] * 4
    assert optimizer.get_diagnostics()["step_count"] == 10
    pairs = zip(model.parameters(), before, strict=True)
    return all(p.isfinite().all() and not p.equal(old) for p, old in pairs)


def main() -> None:
    """Run the checks; an AssertionError if one fails."""
    assert selective_plasticity.SelectivePlasticityOptimizer is SelectivePlasticityOptimizer
    for kind in (SelectivePlasticityOptimizer, ConsolidatingPlasticityOptimizer):
        assert learns(kind) and learns(kind, watched=True), kind
    assert learns(ConsolidatingPlasticityOptimizer, watched=True, rank=2)
    try:
        import sp.lab
    except ImportError as error:
        assert NEEDED in str(error), error
    else:
        raise AssertionError(f"{sp.lab} needs more than torch, and all of that is installed")
    for words, status in ((["--help"], 0), (["compare", "--method", "adam"], 2)):
        done = subprocess.run([sys.executable, "-I", "-m", "sp", *words], capture_output=True, text=True, check=False)
        assert done.returncode == status and (NEEDED in done.stderr) == (status == 2), done
    print("With torch alone the optimizers train.")


if __name__ == "__main__":
    main()
