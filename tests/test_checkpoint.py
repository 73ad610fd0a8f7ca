"""`torch.distributed.checkpoint` saves and loads every form, and looking at a state changes nothing."""

import warnings

import pytest
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

from tests.test_conformance import coincidence, consolidating, every, network, same, sketched, train

STEPS = 30


def trained(make, steps):
    model = network()
    optimizer = make(model)
    return train(model, optimizer, range(steps)), optimizer


def straight(make):
    model = network()
    return train(model, make(model), range(STEPS))


@every
@pytest.mark.parametrize("at", [3, 12])
def test_a_saved_folder_goes_on_bit_by_bit(make, at, tmp_path):
    model, optimizer = trained(make, at)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about there being only one process
        saved = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        dcp.save(saved, checkpoint_id=tmp_path)
        model = network(seed=1)
        optimizer = make(model, lr=0.5)
        state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        dcp.load(state, checkpoint_id=tmp_path)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    same(train(model, optimizer, range(at, STEPS)), straight(make))


@every
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("at", [3, 12])
def test_a_state_dict_by_names_goes_on_bit_by_bit(make, flat, at):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer = trained(make, at)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    resumed = network(seed=1)
    resumed.load_state_dict(model.state_dict())
    other = make(resumed, lr=0.5)
    set_optimizer_state_dict(resumed, other, state, options=options)
    same(train(resumed, other, range(at, STEPS)), straight(make))


@pytest.mark.parametrize("make", [consolidating, coincidence, sketched])
def test_looking_at_a_fresh_optimizer_changes_no_training(make):
    # The published rule counts the empty step that this makes, as Adam does: both correct their means for it.
    model = network()
    optimizer = make(model)
    get_state_dict(model, optimizer)
    same(train(model, optimizer, range(STEPS)), straight(make))


@every
def test_a_key_that_a_hook_left_in_the_state_does_not_disturb(make):
    model = network()
    optimizer = make(model)
    optimizer.register_load_state_dict_post_hook(lambda optimizer: optimizer.state.update(loaded=True))
    train(model, optimizer, range(5))
    optimizer.load_state_dict(optimizer.state_dict())
    same(train(model, optimizer, range(5, STEPS)), straight(make))
    assert optimizer.state["loaded"] is True
