"""The bench measures what it says; what it found is committed and has the cases that the notebook draws."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from studies import bench
from torch import nn


def test_peak_of_a_step_counts_what_lives_at_once():
    class Holding(torch.optim.SGD):
        def step(self):
            first = torch.empty(1000)
            second = torch.empty(500)
            del first, second
            torch.empty(1200)

    assert bench.peak_of_step(Holding([nn.Parameter(torch.zeros(3))], lr=0.1)) == pytest.approx(6000, abs=200)


def test_a_small_bench_has_every_optimizer_and_the_state_that_they_keep(monkeypatch):
    names = [name for name in bench.OPTIMIZERS if "compiled" not in name]
    monkeypatch.setitem(bench.PARTS, "size", ([("mlp", (8, 8))], (16,), names))
    table = bench.bench(["size"], rounds=3).set_index("optimizer")
    assert list(table.index) == names
    adam = table.loc["Adam"]
    assert adam.step_ratio == adam.training_ratio == 1 and adam.state_bytes == pytest.approx(8, abs=0.1)
    assert table.loc["Selective plasticity"].state_bytes == pytest.approx(adam.state_bytes, abs=0.1)
    assert table.loc["Consolidation"].state_bytes == 4
    assert (table.step_us_low <= table.step_us).all() and (table.step_us <= table.step_us_high).all()
    assert (table.training_us > table.step_us).all()


@pytest.mark.parametrize("kind", ["Selective plasticity", "Consolidation"])
def test_a_step_needs_no_more_memory_than_adam_s(kind):
    peaks = {}
    for name in ("Adam", kind):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(784, 700), nn.Linear(700, 10))
        optimizer = bench.OPTIMIZERS[name](model)
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
        own = 2 * sum(p.nbytes for p in model.parameters())
        peaks[name] = own + bench.state_bytes(optimizer) + bench.peak_of_step(optimizer)
    assert peaks[kind] <= 1.1 * peaks["Adam"]


# The table of the GPU was measured before there were other networks than perceptrons.
@pytest.mark.parametrize(("measured", "lacks"), [(bench.MEASURED, set()), (bench.ON_A_GPU, {"network"})])
def test_a_committed_table_is_whole(measured, lacks):
    table = pd.read_csv(measured)
    for part in set(bench.PARTS) - lacks:
        networks, batches, names = bench.PARTS[part]
        rows = table[table.part == part]
        assert set(rows.width) == {hidden[0] for _, hidden in networks}
        assert set(rows.batch) == set(batches) and set(rows.optimizer) == set(names)


def test_verdicts_follow_the_times():
    table = pd.read_csv(bench.MEASURED)
    faster = table.assign(training_ratio=1.0, training_ratio_low=0.9, training_ratio_high=1.1)
    slower = table.assign(training_ratio=9.0, training_ratio_low=8.0, training_ratio_high=10.0)
    for changed, word in ((faster, "met."), (slower, "not met.")):
        training = [line for line in bench.verdicts(changed) if "training" in line]
        assert training and all(line.endswith(f"asked: {word}") for line in training)


def test_the_script_for_an_accelerator_runs_on_a_cpu_too(tmp_path):
    command = [sys.executable, "-m", "tests.on_a_gpu", "--device", "cpu", "--quick", "--csv", tmp_path / "table.csv"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "table.csv")
    assert list(table.optimizer) == bench.WATCHED and (table.device == "cpu").all()
    assert table.training_ratio[0] == 1 and (table.training_ratio[1:] > 0).all()


def test_the_size_of_the_state_is_judged_by_the_state():
    table = pd.read_csv(bench.MEASURED)
    told, changed = (
        [line for line in bench.verdicts(one) if ": state" in line] for one in (table, table.assign(peak_bytes=1e9))
    )
    assert told == changed and len(told) > 4
