"""What goes wrong only after many steps, or in data that are far from normalised."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sp import ConsolidatingPlasticityOptimizer, NMDACoincidence, ReplayBuffer, SelectivePlasticityOptimizer, rules
from sp.optim.memory import SketchedMemory


def perceptron(inputs=20, outputs=2, hidden=32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def coincident(model, **options):
    return ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model), **options)


def step(model, optimizer, x, y, **options):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y, **options).backward()
    optimizer.step()


def accuracy(model, x, y):
    return (model(x).argmax(1) == y).float().mean().item()


def test_inputs_that_hardly_differ_leave_room_for_a_second_task():
    torch.manual_seed(0)
    cause = torch.randn(512, 5)
    x = 300 + 3 * cause @ torch.randn(5, 64) / 5**0.5  # sensors in kelvin
    model = perceptron(64)
    optimizer = coincident(model)
    for task in (0, 1):
        y = (cause[:, task] > 0).long()
        for _ in range(200):
            step(model, optimizer, x, y)
        assert accuracy(model, x, y) > 0.95
        inverse = optimizer.state[model[0].weight]["inputs_inverse"][0].double()
        assert 0 < torch.linalg.eigvalsh(inverse)[-1] < 1.3


def test_a_memory_that_rounding_made_indefinite_still_has_an_inverse():
    memory = torch.diag(torch.tensor([1.0, 1e-3, -0.02]))
    torch.testing.assert_close(rules.novelty(memory, 100.0).diagonal(), torch.tensor([1 / 101, 1 / 1.1, 1.0]))
    memory[0, 0] = torch.inf
    assert (rules.novelty(memory, 100.0) == 0).all()


def test_a_sketch_of_the_same_few_rows_for_ever_stays_a_projection():
    torch.manual_seed(0)
    model = nn.Linear(300, 2, bias=False)
    optimizer = coincident(model, rank=64)
    x = torch.randn(64, 10) @ torch.randn(10, 300)
    y = torch.randint(2, (64,))
    for _ in range(3000):
        step(model, optimizer, x, y)
    inputs = SketchedMemory("inputs", optimizer.defaults["retention"], rank=64)
    values = torch.linalg.eigvalsh(inputs.multiply(optimizer.state[model.weight], torch.eye(300)[None])[0].double())
    assert values[0] > -1e-3 and values[-1] < 1.001 and (values > 0.9).sum() > 200


def test_a_large_embedding_does_not_stop_the_diagonal_rule():
    torch.manual_seed(0)
    words, net = nn.Embedding(10_000, 16), perceptron(26)
    optimizer = ConsolidatingPlasticityOptimizer([*words.parameters(), *net.parameters()])
    for _ in range(400):
        x, word = torch.randn(16, 10), torch.randint(10_000, (16,))
        loss = F.cross_entropy(net(torch.cat([x, words(word)], 1)), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.45


@pytest.mark.parametrize("rank", [None, 8])
def test_examples_without_a_loss_are_not_remembered(rank):
    x, y = torch.randn(24, 20), torch.randint(2, (24,))
    memories = []
    for without in (False, True):
        model = perceptron()
        optimizer = coincident(model, rank=rank)
        rows = torch.cat([x, 5 + torch.randn(24, 20)]) if without else x
        labels = torch.cat([y, torch.full((24,), -100)]) if without else y
        step(model, optimizer, rows, labels)
        held = optimizer.get_param_eligibility(model[0].weight)[0]
        memories.append(held / held.mean())
    if rank is None:  # the same directions; the scale follows the variance of all inputs
        torch.testing.assert_close(*memories)
    assert memories[1].max() < 3


def test_unlabelled_tokens_of_an_embedding_are_not_counted():
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 2))
    optimizer = coincident(model)
    step(model, optimizer, torch.arange(20), torch.where(torch.arange(20) < 10, 1, -100))
    held = optimizer.get_param_eligibility(model[0].weight)[:, 0]
    assert (held[:10] > 0).all() and (held[10:] == 0).all()


@pytest.mark.parametrize("form", ["diagonal", "coincidence"])
def test_steps_with_a_rate_of_zero_use_up_no_plasticity(form):
    model = perceptron()
    make = coincident if form == "coincidence" else lambda m: ConsolidatingPlasticityOptimizer(m.parameters())
    optimizer = make(model)
    x, y = torch.randn(64, 20), torch.randint(2, (64,))
    step(model, optimizer, x, y)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.param_groups[0]["lr"] = 0.0
    for _ in range(5):
        step(model, optimizer, torch.randn(64, 20), y)
    for key, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(value, before[key][name], rtol=0, atol=0)


def test_a_head_that_is_used_in_every_second_step_gets_a_threshold():
    torch.manual_seed(0)
    heads = nn.ModuleList([nn.Linear(20, 2), nn.Linear(20, 2)])
    optimizer = SelectivePlasticityOptimizer(heads.parameters(), warmup_steps=50)
    for t in range(120):
        step(heads[t % 2], optimizer, torch.randn(32, 20), torch.randint(2, (32,)))
    assert all(optimizer.state[head.weight]["threshold"].isfinite() for head in heads)


def test_copies_of_two_optimizers_that_share_a_watcher_spare_each_other():
    model = perceptron()
    watcher = NMDACoincidence(model)
    pair = [ConsolidatingPlasticityOptimizer(model[i].parameters(), coincidence=watcher) for i in (0, 2)]
    model, pair = copy.deepcopy((model, pair))
    before = model[2].weight.detach().clone()
    for _ in range(3):
        F.cross_entropy(model(torch.randn(64, 20)), torch.randint(2, (64,))).backward()
        for optimizer in pair:
            optimizer.step()
            optimizer.zero_grad()
    assert (model[2].weight != before).any()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_checkpoint_fits_whether_the_weight_is_frozen_then_or_now(frozen):
    def made(is_frozen):
        model = perceptron()
        optimizer = coincident(model)
        model[0].weight.requires_grad_(not is_frozen)
        return model, optimizer

    x, y = torch.randn(64, 20), torch.randint(2, (64,))
    model, optimizer = made(frozen)
    step(model, optimizer, x, y)
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    model[0].weight.requires_grad_(frozen)
    step(model, optimizer, x, y)
    again, resumed = made(not frozen)
    again.load_state_dict(weights)
    resumed.load_state_dict(saved)
    step(again, resumed, x, y)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_steps_are_counted_beyond_what_float32_can_count():
    model = nn.Linear(20, 2)
    optimizer = coincident(model)
    step(model, optimizer, torch.randn(8, 20), torch.randint(2, (8,)))
    optimizer.state[model.weight]["step"].fill_(2**24)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer, torch.randn(8, 20), torch.randint(2, (8,)))
    assert int(optimizer.state[model.weight]["step"]) == 2**24 + 1


def test_what_is_covered_is_named_even_if_the_model_is_gone():
    encoder, head = nn.Linear(4, 8), nn.Linear(8, 2)
    watcher = NMDACoincidence(nn.ModuleList([encoder, head]))
    expected = {"0.weight": encoder.weight, "0.bias": encoder.bias, "1.weight": head.weight, "1.bias": head.bias}
    covered = watcher.covered()
    assert list(covered) == list(expected) and all(covered[name] is p for name, p in expected.items())


def test_a_trace_that_bfloat16_would_keep_for_ever_is_warned_of():
    weight = nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
    optimizer = SelectivePlasticityOptimizer([weight], trace_decay=0.999)
    weight.grad = torch.ones_like(weight)
    with pytest.warns(UserWarning, match=r"trace_decay=0.999 hardly fades.*give trace_decay <= 0.99"):
        optimizer.step()


def test_a_changed_rank_is_reported_by_what_reads_the_memory():
    model = perceptron()
    optimizer = coincident(model)
    step(model, optimizer, torch.randn(8, 20), torch.randint(2, (8,)))
    optimizer.param_groups[0]["rank"] = 4
    with pytest.raises(ValueError, match="rank must stay as it was"):
        optimizer.get_diagnostics()


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_a_buffer_refuses_what_it_cannot_store_and_goes_on(dtype):
    buffer, x, y = ReplayBuffer(4), torch.arange(6).reshape(3, 2), torch.arange(3)
    with pytest.raises(TypeError, match="x must not be of dtype"):
        buffer.add(x.to(dtype), y)
    buffer.add(x, y)
    assert len(buffer) == 3
