"""A layer that gains outputs keeps what it has learnt, and training continues with all state."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from selective_plasticity import grow_outputs
from sp import ConsolidatingPlasticityOptimizer, NMDACoincidence, PlasticityCounter, SelectivePlasticityOptimizer
from sp.lab.data import load, make_stream
from sp.optim.coincidence import memories
from tests.test_conformance import coincidence, consolidating, on_disk, selective, sketched

INPUTS = 6


def selective_coincidence(model):
    return selective(model, coincidence=NMDACoincidence(model))


def adam(model):
    return torch.optim.Adam(model.parameters(), 0.01, amsgrad=True)


def momentum(model):
    return torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)


OURS = (selective, selective_coincidence, consolidating, coincidence, sketched)
every = pytest.mark.parametrize("make", [*OURS, adam, momentum], ids=lambda f: f.__name__)
ours = pytest.mark.parametrize("make", OURS, ids=lambda f: f.__name__)
with_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])


def network(outputs, bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU(), nn.Linear(8, outputs, bias=bias))


def loss_of(model, step):
    generator = torch.Generator(torch.get_default_device()).manual_seed(step)
    x, y = torch.randn(10, INPUTS, generator=generator), torch.randint(50, (10,), generator=generator)
    return F.cross_entropy(model(x), y % model[-1].out_features)


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
    return loss  # holds the graph of the last step, as a training loop does


def state_of(optimizer, p):
    return {name: value.clone() for name, value in optimizer.state.get(p, {}).items()}


@every
@with_bias
def test_old_outputs_answer_as_before_and_new_ones_learn(make, bias):
    model = network(4, bias)
    optimizer = make(model)
    held = train(model, optimizer, range(12))
    parameters, x = list(model.parameters()), torch.randn(5, INPUTS)
    answers, old = model(x), [p.detach().clone() for p in parameters]
    grow_outputs(model[-1], 6, optimizer)
    assert model[-1].out_features == 6 and all(p is q for p, q in zip(parameters, model.parameters(), strict=True))
    torch.testing.assert_close(model(x)[:, :4], answers, rtol=1e-6, atol=1e-6)
    for p, q in zip(parameters, old, strict=True):
        assert torch.equal(p[: len(q)], q)
    assert not model[-1].weight[4:].any()
    train(model, optimizer, range(12, 30))
    assert (model[-1].weight[4:] != 0).all() and model(x).shape == (5, 6) and held.grad_fn is not None


@every
@with_bias
def test_it_may_grow_before_the_first_step_and_again_and_again(make, bias):
    model = network(2, bias)
    optimizer = make(model)
    for outputs in (3, 3, 5, 6):
        grow_outputs(model[-1], outputs, optimizer)
        train(model, optimizer, range(outputs, outputs + 2))
    grow_outputs(model[-1], 7, optimizer)
    grow_outputs(model[-1], 9, optimizer)
    train(model, optimizer, range(9, 30))
    assert all(p.isfinite().all() for p in model.parameters()) and model[-1].weight.shape == (9, 8)


@ours
def test_to_grow_before_the_first_step_is_to_begin_with_as_many_outputs(make):
    grown, begun = network(3), network(7)
    begun[0].load_state_dict(grown[0].state_dict())
    optimizers = make(grown), make(begun)
    grow_outputs(grown[-1], 7, optimizers[0])
    begun[-1].load_state_dict(grown[-1].state_dict())
    for model, optimizer in zip((grown, begun), optimizers, strict=True):
        train(model, optimizer, range(20))
    torch.testing.assert_close(grown.state_dict(), begun.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("make", [selective, consolidating, adam, momentum], ids=lambda f: f.__name__)
def test_what_is_held_of_each_synapse_stays_and_new_ones_have_none(make):
    model = network(4)
    optimizer = make(model)
    train(model, optimizer, range(12))
    before = {p: state_of(optimizer, p) for p in model.parameters()}
    grow_outputs(model[-1], 6, optimizer)
    for p, state in before.items():
        assert state and state.keys() == optimizer.state[p].keys()
        for name, value in state.items():
            now = optimizer.state[p][name]
            if value.dim() and len(p) == 6:
                assert now.shape == p.shape and torch.equal(now[:4], value) and not now[4:].any()
            else:
                assert torch.equal(now, value)


def test_memories_of_inputs_stay_and_that_of_errors_gets_outputs_without_any():
    model = network(4)
    optimizer = coincidence(model)
    train(model, optimizer, range(12))
    weight = model[-1].weight
    before = state_of(optimizer, weight)
    first = state_of(optimizer, model[0].weight)
    grow_outputs(model[-1], 6, optimizer)
    now = optimizer.state[weight]
    assert now.keys() == before.keys()
    for name, value in before.items():
        if name == "scale":  # of a gradient of four outputs, while the gain is now that of six
            torch.testing.assert_close(now[name], value * 6 / 4)
        elif not name.startswith("errors"):
            assert torch.equal(now[name], value)
    torch.testing.assert_close(now["errors"], F.pad(before["errors"], (0, 2, 0, 2)), rtol=1e-5, atol=1e-9)
    inverse = now["errors_inverse"][0]
    assert inverse.shape == (6, 6) and not inverse[:4, 4:].any()
    # Nothing is damped where there was no error: of all directions, these pass the largest share.
    assert torch.linalg.eigvalsh(inverse)[-2:].allclose(inverse.diagonal()[4:])
    assert inverse[:4, :4].diagonal().max() < inverse.diagonal()[4:].min()  # at once, not from the next look on
    assert all(torch.equal(optimizer.state[model[0].weight][name], value) for name, value in first.items())


@pytest.mark.parametrize(("rank", "outputs"), [(30, 14), (9, 10), (15, 40)], ids=["to sketch", "sketch", "wide sketch"])
def test_a_sketch_of_errors_goes_on_as_a_sketch_of_more_outputs(rank, outputs):
    """Errors have a third of the rank: from 8 outputs an exact memory becomes a sketch, or a sketch a wider one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, 8), nn.Linear(8, 8))
    optimizer = ConsolidatingPlasticityOptimizer(
        model.parameters(), coincidence=NMDACoincidence(model), rank=rank, refresh_every=1
    )
    train(model, optimizer, range(12))
    weight = model[-1].weight
    group, (synapses,) = optimizer.param_groups[0], [s for s in optimizer.coincidence.synapses if s.weight is weight]
    before = memories(synapses, group)[1].matrix(optimizer.state[weight])
    grow_outputs(model[-1], outputs, optimizer)
    after = memories(synapses, group)[1].matrix(optimizer.state[weight])
    assert after.shape == (1, outputs, outputs)
    # About as much in all (with so few outputs a sketch is coarse), and the heaviest direction where it was.
    torch.testing.assert_close(after[0].trace(), before[0].trace(), rtol=0.4, atol=0)
    heaviest = F.pad(torch.linalg.eigh(before[0]).eigenvectors[:, -1], (0, outputs - 8))
    assert heaviest @ after[0] @ heaviest > 0.5 * torch.linalg.eigvalsh(before[0])[-1]
    train(model, optimizer, range(12, 30))
    assert all(p.isfinite().all() for p in model.parameters())


@every
def test_training_is_resumed_in_a_grown_model_bit_by_bit(make):
    model = network(4)
    optimizer = make(model)
    train(model, optimizer, range(10))
    grow_outputs(model[-1], 7, optimizer)
    train(model, optimizer, range(10, 14))
    saved = on_disk({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    train(model, optimizer, range(14, 25))
    resumed = network(4, seed=1)
    other = make(resumed)
    grow_outputs(resumed[-1], 7, other)
    resumed.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    train(resumed, other, range(14, 25))
    torch.testing.assert_close(resumed.state_dict(), model.state_dict(), rtol=0, atol=0)


@ours
def test_a_copy_of_a_grown_pair_trains_by_itself(make):
    model = network(4)
    optimizer = make(model)
    train(model, optimizer, range(10))
    grow_outputs(model[-1], 7, optimizer)
    copied, other = copy.deepcopy((model, optimizer))
    for pair in ((model, optimizer), (copied, other)):
        train(*pair, range(10, 20))
    torch.testing.assert_close(copied.state_dict(), model.state_dict(), rtol=0, atol=0)


@ours
@pytest.mark.parametrize("owner", ["model", "optimizer"])
def test_a_counter_goes_on_to_count_old_synapses_and_new_ones(make, owner):
    model = network(4)
    optimizer = make(model)
    counter = PlasticityCounter(model if owner == "model" else optimizer, every=1)
    train(model, optimizer, range(10))
    name = "2.weight" if owner == "model" else "parameter 2"
    ltp = counter.events[name].ltp.clone()
    grow_outputs(model[-1], 6, optimizer)
    saved = counter.state_dict()
    assert torch.equal(saved[name]["ltp"][:4], ltp) and not saved[name]["ltp"][4:].any()
    train(model, optimizer, range(10, 15))
    seen = counter.events[name]
    assert seen.looks == 15 and (seen.ltp[:4] >= ltp).all()
    assert (seen.ltp + seen.ltd + seen.shut)[4:].any()


@ours
def test_what_came_back_before_is_not_used_after(make):
    """A gradient that no step used, and the passes that made it, have the old shape."""
    model, alone = network(4), network(4)
    optimizer, other = make(model), make(alone)
    for m, o in ((model, optimizer), (alone, other)):
        train(m, o, range(5))
    loss_of(model, 99).backward()
    grow_outputs(model[-1], 6, optimizer)
    assert model[-1].weight.grad is None
    grow_outputs(alone[-1], 6, other)
    for m, o in ((model, optimizer), (alone, other)):
        train(m, o, range(5, 12))
    torch.testing.assert_close(model.state_dict(), alone.state_dict(), rtol=0, atol=0)


def test_hooks_of_the_weight_stay_and_see_the_new_shape():
    model, shapes = network(4), []
    model[-1].weight.register_post_accumulate_grad_hook(lambda p: shapes.append(tuple(p.grad.shape)))
    optimizer = coincidence(model)
    loss = loss_of(model, 0)
    loss.backward()
    grow_outputs(model[-1], 6, optimizer)
    loss_of(model, 1).backward()
    assert shapes == [(4, 8), (6, 8)]
    del loss
    gc.collect()
    loss_of(model, 2).backward()
    assert len(shapes) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@ours
def test_in_any_precision(make, dtype):
    model = network(4).to(dtype)
    optimizer = make(model)
    x = torch.randn(10, INPUTS, dtype=dtype)
    for step in range(12):
        if step == 6:
            grow_outputs(model[-1], 6, optimizer)
        optimizer.zero_grad()
        model(x).float().square().mean().backward()
        optimizer.step()
    assert model[-1].weight.dtype == dtype and all(p.isfinite().all() for p in model.parameters())


def test_bias_of_new_outputs():
    model = network(4)
    optimizer = coincidence(model)
    train(model, optimizer, range(12))
    grow_outputs(model[-1], 5, optimizer)
    below = -2 * optimizer.state[model[-1].weight]["spread"]
    assert below < 0 and model[-1].bias[4] == below
    grow_outputs(model[-1], 6, optimizer, bias=0)
    grow_outputs(model[-1], 7, optimizer, bias=-1.5)
    assert model[-1].bias[4:].tolist() == [float(below), 0.0, -1.5]
    plain = network(4)
    grow_outputs(plain[-1], 5, adam(plain))
    assert plain[-1].bias[4] == 0


def test_an_option_that_no_longer_fits_is_refused_and_nothing_changes():
    model = network(8)
    optimizer = coincidence(model)
    train(model, optimizer, range(5))
    optimizer.param_groups[0]["rank"] = 3
    before = state_of(optimizer, model[-1].weight)
    with pytest.raises(ValueError, match="rank must stay as it was"):
        grow_outputs(model[-1], 10, optimizer)
    assert model[-1].weight.shape == (8, 8) and str(before) == str(optimizer.state[model[-1].weight])


def test_equalisation_that_is_off_may_come_back():
    model = network(4)
    optimizer = coincidence(model)
    train(model, optimizer, range(5))
    optimizer.param_groups[0]["equalisation"] = 0.0
    grow_outputs(model[-1], 6, optimizer)
    train(model, optimizer, range(5, 10))
    optimizer.param_groups[0]["equalisation"] = 0.12
    train(model, optimizer, range(10, 15))
    assert optimizer.state[model[-1].weight]["errors"].shape == (1, 6, 6)


class Factored(torch.optim.SGD):
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["rows"] = torch.zeros(len(p), 1)


def tied():
    model = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 4))
    model[1].weight = model[0].weight
    return model


def factored(model):
    optimizer = Factored(model.parameters())
    optimizer.step()
    return optimizer


def weights_alone(model):
    return torch.optim.SGD([p for p in model.parameters() if p.dim() > 1], 0.1)


@pytest.mark.parametrize(
    ("make", "layer", "out_features", "options", "error", "message"),
    [
        (adam, lambda m: m[1], 6, {}, TypeError, "layer must be a torch.nn.Linear, got a ReLU"),
        (lambda m: "adam", lambda m: m[-1], 6, {}, TypeError, "optimizer must be a torch.optim.Optimizer, got a str"),
        (coincidence, lambda m: m[-1], 3, {}, ValueError, "out_features must be a whole number >= 4, got 3"),
        (coincidence, lambda m: m[-1], 6.0, {}, TypeError, "out_features must be a whole number"),
        (coincidence, lambda m: nn.Linear(8, 4), 6, {}, ValueError, "in none of its parameter groups"),
        (coincidence, lambda m: m[-1], 6, {"bias": float("nan")}, ValueError, "bias must be a finite number"),
        (adam, lambda m: parametrizations.weight_norm(m[-1]), 6, {}, ValueError, "remove the parametrisation"),
        (factored, lambda m: m[-1], 6, {}, ValueError, r"holds 'rows' for a parameter of shape \(4, 8\)"),
        (lambda m: torch.optim.LBFGS(m.parameters()), lambda m: m[-1], 6, {}, ValueError, "got LBFGS"),
        (weights_alone, lambda m: m[-1], 6, {}, ValueError, "whose bias is in none of its parameter groups"),
    ],
)
def test_errors_name_what_is_wrong_and_nothing_is_changed(make, layer, out_features, options, error, message):
    model = network(4)
    layer, optimizer = layer(model), make(model)
    with pytest.raises(error, match=message):
        grow_outputs(layer, out_features, optimizer, **options)
    assert model[-1].out_features == 4 and model[-1].weight.shape == (4, 8)


def test_a_bias_is_refused_for_a_layer_without_one_and_a_weight_that_is_an_embedding_s():
    model = network(4, bias=False)
    with pytest.raises(ValueError, match="bias must be None"):
        grow_outputs(model[-1], 6, adam(model), bias=1.0)
    shared = tied()
    with pytest.raises(ValueError, match="shares it with an embedding"):
        grow_outputs(shared[1], 6, coincidence(shared))


def here(x, y):
    return x.to(torch.get_default_device()), y.to(torch.get_default_device())


def learnt(seed, growing):
    """Final accuracy on digits in five tasks of two classes; labels are numbered in order of appearance."""
    tasks = make_stream(load("digits"), "split", 5, "class", seed).tasks
    place = torch.zeros(10, dtype=torch.long)
    place[torch.cat([here(*task.train())[1].unique() for task in tasks])] = torch.arange(10)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU())
    model.append(nn.Linear(100, 2 if growing else 10))
    optimizer = ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model))

    def accuracy(tasks):
        return sum(float((model(x).argmax(1) == place[y]).float().mean()) for x, y in (here(*t.test()) for t in tasks))

    for number, task in enumerate(tasks):
        if growing and number:
            before = accuracy(tasks[:number])
            grow_outputs(model[-1], 2 * number + 2, optimizer)
            assert accuracy(tasks[:number]) == pytest.approx(before)  # new outputs take nothing over
        x, y = here(*task.train())
        generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
        for _ in range(2):
            for rows in torch.randperm(len(x), generator=generator).split(32):
                optimizer.zero_grad()
                F.cross_entropy(model(x[rows]), place[y[rows]]).backward()
                optimizer.step()
    return accuracy(tasks) / 5


def test_a_head_that_grows_with_the_classes_keeps_nearly_what_one_of_full_size_keeps():
    full, grown = ([learnt(seed, growing) for seed in range(3)] for growing in (False, True))
    assert sum(grown) / 3 > 0.92 and sum(full) / 3 - sum(grown) / 3 < 0.03


def test_the_published_rule_has_a_fresh_trace_in_new_outputs():
    model = network(4)
    optimizer = SelectivePlasticityOptimizer(model.parameters(), warmup_steps=2)
    train(model, optimizer, range(20))
    grow_outputs(model[-1], 6, optimizer)
    assert not optimizer.get_param_eligibility(model[-1].weight)[4:].any()
    assert (optimizer.get_param_gate(model[-1].weight)[4:] == 1).all()
