"""Every new tensor names its device, so that the default device (`torch.set_default_device`) does not matter.

A tensor made without a device is on ``meta`` here, where it has no values: its first use raises.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sp import NMDACoincidence, PlasticityCounter, ReplayBuffer, grow_outputs
from sp.lab.data import load
from sp.lab.experiment import Experiment, run
from sp.replay import POLICIES
from tests.test_conformance import every, same, selective


def network():
    torch.manual_seed(0)
    layers = [nn.Embedding(7, 6), nn.Flatten(), nn.Linear(18, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 4)]
    return nn.Sequential(*layers)


def train(model, optimizer, batches, device):
    counter = PlasticityCounter(optimizer, every=2)
    with torch.device(device):
        for step, (x, y) in enumerate(batches):
            if step == 30:
                grow_outputs(model[-1], 6, optimizer)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        return optimizer.get_diagnostics(), counter.rows()


def both(make):
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randint(7, (8, 3), generator=generator), torch.randint(4, (8,), generator=generator)) for _ in range(60)
    ]
    models, found = [network(), network()], []
    for model, device in zip(models, ("meta", "cpu"), strict=True):
        optimizer = make(model)
        found.append(train(model, optimizer, batches, device))
        again = make(model)
        with torch.device(device):
            again.load_state_dict(optimizer.state_dict())
        assert all(v.device.type == "cpu" for state in again.state.values() for v in state.values())
    same(*models)
    assert found[0] == found[1]


@every
def test_of_an_optimizer(make):
    both(make)


def test_of_the_published_rule_with_a_watcher():
    both(lambda model: selective(model, coincidence=NMDACoincidence(model)))


@pytest.mark.parametrize("method", ["coincidence", "ranpac", "derpp"])
@pytest.mark.parametrize("stream", ["split", "permuted", "rotated"])
def test_of_an_experiment(method, stream):
    replayed = 100 if method == "derpp" else 0
    experiment = Experiment(optimizer=method, stream=stream, hidden=(16,), replay_capacity=replayed)
    accuracies = []
    for device in ("cpu", "meta"):
        load.cache_clear()
        with torch.device(device):
            load("digits")
            accuracies.append(run(experiment).accuracy)
    np.testing.assert_array_equal(*accuracies)


@pytest.mark.parametrize("policy", POLICIES)
def test_of_a_replay_buffer(policy):
    drawn = []
    for device in ("cpu", "meta"):
        generator = torch.Generator().manual_seed(0)
        batches = [(torch.randn(8, 3, generator=generator), torch.arange(8) % 3) for _ in range(10)]
        with torch.device(device):
            buffer = ReplayBuffer(20, policy)
            for x, y in batches:
                buffer.add(x, y)
            other = ReplayBuffer(20, policy)
            other.load_state_dict(buffer.state_dict())
            drawn.append([*buffer.sample(8), *other.sample(8)])
    torch.testing.assert_close(*drawn, rtol=0, atol=0)
