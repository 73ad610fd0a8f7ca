"""Where torch alone is installed the optimizers train, and what needs more says how to get it: ``make test-alone``."""

import subprocess
import sys

import torch
from torch import nn

import selective_plasticity
from sp import ConsolidatingPlasticityOptimizer, NMDACoincidence, SelectivePlasticityOptimizer

NEEDED = "install what is missing with  pip install 'selective-plasticity[lab]'"


def moves(make) -> bool:
    """Whether a few steps of an optimizer change each parameter of a small network, which stays finite."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    optimizer, before = make(model), [p.detach().clone() for p in model.parameters()]
    for _ in range(5):
        x, y = torch.randn(4, 8), torch.randint(3, (4,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    pairs = zip(model.parameters(), before, strict=True)
    return all(p.isfinite().all() and not p.equal(old) for p, old in pairs)


def main() -> None:
    """Try it; an AssertionError where something is not as it should be."""
    assert selective_plasticity.SelectivePlasticityOptimizer is SelectivePlasticityOptimizer
    assert moves(lambda model: SelectivePlasticityOptimizer(model.parameters(), lr=1e-3))
    assert moves(lambda model: ConsolidatingPlasticityOptimizer(model.parameters()))
    assert moves(lambda model: ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model)))
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
