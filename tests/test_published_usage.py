"""User code of the published module runs unchanged (P1 to P5)."""

import numpy as np
import torch
from torch import nn

import selective_plasticity
import sp
from selective_plasticity import ReplayBuffer, SelectivePlasticityOptimizer
from sp.lab.data import load, make_stream


def test_both_imports_give_the_same():
    assert {"SelectivePlasticityOptimizer", "ReplayBuffer"} < set(selective_plasticity.__all__)
    assert sorted(selective_plasticity.__all__) == sorted(sp.__all__)
    for name in sp.__all__:
        assert getattr(selective_plasticity, name) is getattr(sp, name)


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def two_tasks():
    return [task.train() for task in make_stream(load("digits"), "split", 2, "class", seed=0).tasks]


def batches(x, y):
    return zip(x.split(64), y.split(64), strict=True)


def test_constructor_with_every_documented_argument_and_a_two_task_loop(capsys):
    model = make_model()
    optimizer = SelectivePlasticityOptimizer(
        model.parameters(),
        lr=0.003,
        trace_decay=0.99,
        plasticity_k=5.0,
        threshold_percentile=75,
        warmup_steps=10,
        adaptive_threshold=True,
        eps=1e-8,
    )
    criterion = nn.CrossEntropyLoss()
    for task_x, task_y in two_tasks():
        for _ in range(5):
            for step, (x, y) in enumerate(batches(task_x, task_y)):
                optimizer.zero_grad()
                loss = criterion(model(x), y)
                loss.backward()
                optimizer.step()
                if step % 10 == 0:
                    diag = optimizer.get_diagnostics()
                    print(f"Step {diag['step_count']:d}")
                    print(f"Eligibility: {diag['eligibility_mean']:.4f}, gate: {diag['gate_mean']:.4f}")
        assert (model(task_x).argmax(1) == task_y).float().mean() > 0.9  # it does learn
        maps = [optimizer.get_param_eligibility(p).cpu().numpy() for p in model.parameters()]
        assert [seen.shape for seen in maps] == [p.shape for p in model.parameters()] and min(map(np.max, maps)) > 0
        optimizer.reset_eligibility()
    assert "Step 1\n" in capsys.readouterr().out
    assert 0 < diag["gate_mean"] < 1 and diag["eligibility_mean"] > 0


def test_replay_loop_that_adds_the_whole_concatenated_batch():
    model = make_model()
    optimizer = SelectivePlasticityOptimizer(model.parameters(), lr=0.003, warmup_steps=10)
    replay_buffer = ReplayBuffer(capacity=200)
    criterion = nn.CrossEntropyLoss()
    tasks = two_tasks()
    for task_x, task_y in tasks:
        for x, y in batches(task_x, task_y):
            if len(replay_buffer) > 0:
                replay_x, replay_y = replay_buffer.sample(32)
                x = torch.cat([x, replay_x])
                y = torch.cat([y, replay_y])
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            replay_buffer.add(x, y)
    assert len(replay_buffer) == 200
    share = sum(n for label, n in replay_buffer.class_counts().items() if label < 5) / 200
    assert 0.35 < share < 0.65
