"""`torch.distributed.checkpoint` saves and loads every form, and looking at a state changes nothing."""

import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

from sp import ConsolidatingPlasticityOptimizer, NMDACoincidence, SelectivePlasticityOptimizer

STEPS = 30


def published(model, params=None):
    return SelectivePlasticityOptimizer(params or model.parameters(), lr=0.01, warmup_steps=8)


def diagonal(model, params=None):
    return ConsolidatingPlasticityOptimizer(params or model.parameters(), warmup_steps=8)


def coincidence(model, params=None, **options):
    options = {"refresh_every": 3, "warmup_steps": 8, **options}
    return ConsolidatingPlasticityOptimizer(params or model.parameters(), coincidence=NMDACoincidence(model), **options)


def sketched(model, params=None):
    return coincidence(model, params, rank=2)


forms = pytest.mark.parametrize("make", [published, diagonal, coincidence, sketched])
consolidating = pytest.mark.parametrize("make", [diagonal, coincidence, sketched])


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 11), nn.LayerNorm(11), nn.ReLU(), nn.Linear(11, 11), nn.ReLU(), nn.Linear(11, 3))


def train(model, optimizer, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def trained(make):
    model = network()
    optimizer = make(model)
    return model, optimizer, train(model, optimizer, range(12))


def straight(make):
    model = network()
    return train(model, make(model), range(STEPS))


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@forms
def test_a_saved_folder_goes_on_bit_by_bit(make, tmp_path):
    model, optimizer, _ = trained(make)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is only one process
        saved = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        dcp.save(saved, checkpoint_id=tmp_path)
        model = network(seed=1)
        optimizer = make(model)
        state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        dcp.load(state, checkpoint_id=tmp_path)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    same(train(model, optimizer, range(12, STEPS)), straight(make))


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@forms
def test_a_state_dict_by_names_goes_on_bit_by_bit(make, flat):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer, _ = trained(make)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    resumed = network(seed=1)
    resumed.load_state_dict(model.state_dict())
    other = make(resumed)
    set_optimizer_state_dict(resumed, other, state, options=options)
    same(train(resumed, other, range(12, STEPS)), straight(make))


@consolidating
def test_looking_at_a_fresh_optimizer_changes_no_training(make):
    # The published rule counts the empty step that this makes, as Adam does: both correct their means for it.
    model = network()
    optimizer = make(model)
    get_state_dict(model, optimizer)
    torch.testing.assert_close(train(model, optimizer, range(STEPS)), straight(make), rtol=1e-5, atol=1e-6)


@forms
def test_a_key_that_a_hook_left_in_the_state_does_not_disturb(make):
    model = network()
    optimizer = make(model)
    optimizer.register_load_state_dict_post_hook(lambda optimizer: optimizer.state.update(loaded=True))
    train(model, optimizer, range(5))
    optimizer.load_state_dict(optimizer.state_dict())
    same(train(model, optimizer, range(5, STEPS)), straight(make))
    assert optimizer.state["loaded"] is True
