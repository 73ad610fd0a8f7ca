"""Conformance on an accelerator, and what a step costs there next to Adam: ``make gpu``.

``python -m tests.on_a_gpu --device cuda --csv build/on_a_gpu.csv`` runs the tests below with models and data on the
device, then measures as ``python notebooks/studies bench`` does, and writes one row per network and optimizer.
``--quick`` tries both in less than a minute.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

from sp.files import write_atomically

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "notebooks"))

from studies.bench import PARTS, bench  # noqa: E402

TESTS = ["test_conformance.py", "test_any_network.py", "test_torch_optim.py", "test_coincidence.py", "test_grow.py"]
TESTS.append("test_golden_runs.py::test_accuracies_are_those_that_were_recorded_under_this_version")
SHOWN = ["width", "batch", "optimizer", "step_us", "step_ratio", "training_us", "training_ratio"]


def main() -> int:
    """Test and measure; the exit status is that of the tests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--csv", type=Path, default=ROOT / "build/on_a_gpu.csv", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="few tests, the smallest networks, two rounds")
    chosen = parser.parse_args()
    chosen.csv.parent.mkdir(parents=True, exist_ok=True)
    files = [f"tests/{name}" for name in (TESTS[:1] if chosen.quick else TESTS)]
    command = [sys.executable, "-m", "pytest", "-n", "auto", "--maxprocesses", "8", "--device", chosen.device, *files]
    few = ["-k", "closure or maximize_climbs"] if chosen.quick else []
    # Makes results bit-for-bit the same: cuBLAS needs its own workspace for that.
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    tested = subprocess.run([*command, *few], cwd=ROOT, env=environment, check=False).returncode
    quick = {"parts": ("width",), "rounds": 2, "widest": 256} if chosen.quick else {"parts": tuple(PARTS)}
    table = bench(**quick, device=chosen.device)
    name = torch.cuda.get_device_name(chosen.device) if chosen.device.startswith("cuda") else chosen.device
    table.insert(0, "device", name)
    write_atomically(chosen.csv, table.to_csv(index=False, float_format="%.4g"))
    print(table[SHOWN].to_string(index=False, float_format="%.2f"))
    print(f"{chosen.csv}: {len(table)} rows, {name}, torch {torch.__version__}")
    return tested


if __name__ == "__main__":
    sys.exit(main())
