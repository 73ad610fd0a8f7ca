"""A training loop can be written in several ways, and what is learnt and held is the same."""

import gc

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from sp import ConsolidatingPlasticityOptimizer, NMDACoincidence
from tests.test_watching import CLASSES, INPUTS, InOrder, Net, batch, classified, made, train, watched


@pytest.mark.parametrize("cleared", ["optimizer", "model"])
def test_a_bias_that_the_optimizer_does_not_hold_is_like_a_frozen_one(cleared):
    ends = []
    for frozen in (False, True):
        model = made()
        if frozen:
            for p in model.parameters():
                p.requires_grad_(p.dim() > 1)
        matrices = [p for p in model.parameters() if p.dim() > 1]
        optimizer = ConsolidatingPlasticityOptimizer(matrices, coincidence=NMDACoincidence(model))
        for seed in range(30):
            (model if cleared == "model" else optimizer).zero_grad()
            classified(model, *batch(seed)).backward()
            optimizer.step()
        ends.append(matrices)
    torch.testing.assert_close(ends[0], ends[1])


@pytest.mark.parametrize("network", [Net, InOrder])
def test_a_loss_that_is_kept_holds_no_inputs_of_the_step(network):
    """As in ``losses.append(loss)``; backward frees what autograd saved."""
    model = made(network=network)
    optimizer = watched(model)
    losses, held = [], []
    for seed in range(20):
        optimizer.zero_grad()
        losses.append(classified(model, *batch(seed)))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
        held.append(sum(t.dim() > 1 and len(t) == 16 and t.requires_grad is False for t in alive()))
    assert held[4] == held[19]


def alive():
    gc.collect()
    return [t for t in gc.get_objects() if type(t) is torch.Tensor]


class Segments(nn.Module):
    def __init__(self, **checkpoint):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(INPUTS, 16), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
        self.head, self.checkpoint = nn.Linear(16, CLASSES), checkpoint

    def forward(self, x):
        for segment in (self.first, self.second):
            x = torch.utils.checkpoint.checkpoint(segment, x, **self.checkpoint) if self.checkpoint else segment(x)
        return self.head(x)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_segments_learn_as_others_do(reentrant):
    ends = []
    for checkpoint in ({}, {"use_reentrant": reentrant}):
        model = made(network=lambda: Segments(**checkpoint))  # noqa: B023  called at once
        train(model, watched(model), lambda model, x, y: classified(model, x.requires_grad_(), y))
        ends.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(ends[0], ends[1])


def classes_and_size(model, x, y):
    out = model(x)
    return F.cross_entropy(out, y), out.square().mean()


def auxiliary_and_classes(model, x, y):
    """The first loss reaches a lower layer before any other, which makes it no readout."""
    hidden = model.encoder(x)
    return 0.01 * hidden.square().mean(), F.cross_entropy(model.head(hidden.relu()), y)


@pytest.mark.parametrize(
    ("network", "losses"), [(Net, classes_and_size), (InOrder, classes_and_size), (Net, auxiliary_and_classes)]
)
def test_two_losses_of_one_forward_pass_are_learnt_as_their_sum_is(network, losses):
    ends = []
    for apart in (False, True):
        model = made(network=network)
        optimizer = watched(model)
        for seed in range(30):
            optimizer.zero_grad()
            first, second = losses(model, *batch(seed))
            if apart:
                first.backward(retain_graph=True)
                second.backward()
            else:
                (first + second).backward()
            optimizer.step()
        ends.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-3)


class Tokens(nn.Module):
    """Predicts every token; ``first`` says which axis is the batch, and ``merged`` calls the head on all of them."""

    def __init__(self, kind, first, merged):
        super().__init__()
        self.embed, self.head, self.first, self.merged = nn.Embedding(CLASSES, 8), nn.Linear(8, CLASSES), first, merged
        self.middle = kind(first)

    def forward(self, x):
        h = self.embed(x if self.first else x.T)
        h = self.middle(h)[0] if isinstance(self.middle, nn.GRU) else self.middle(h)
        h = h if self.first else h.movedim(0, 1)
        return self.head(h.reshape(-1, 8)) if self.merged else self.head(h).flatten(0, 1)


KINDS = {
    "GRU": lambda first: nn.GRU(8, 8, batch_first=first),
    "transformer": lambda first: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=first),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("first", "merged"), [(False, False), (True, True), (False, True)])
def test_which_axis_is_the_batch_changes_nothing_where_a_layer_knows_it(kind, first, merged):
    ends = []
    for arranged in ((True, False), (first, merged)):
        model = made(network=lambda: Tokens(KINDS[kind], *arranged))  # noqa: B023  called at once
        optimizer = watched(model)
        for seed in range(20):
            x = torch.randint(CLASSES, (3, 5), generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            F.cross_entropy(model(x), x.flatten()).backward()
            optimizer.step()
        ends.append({name: p.detach() for name, p in model.named_parameters()})
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-4)


def test_a_hook_on_attention_sees_each_pass_once():
    model, calls = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), []
    optimizer = watched(model)
    model.self_attn.register_forward_hook(lambda *_: calls.append("after"))
    model.self_attn.register_forward_pre_hook(lambda *_: calls.append("before"))
    model(torch.randn(4, 5, 8)).sum().backward()
    optimizer.step()
    assert calls == ["before", "after"]


@pytest.mark.parametrize("set_to_none", [False, True])
def test_a_frozen_layer_with_a_gradient_keeps_its_memory_and_its_weights(set_to_none):
    model = nn.Sequential(nn.Linear(INPUTS, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, CLASSES))
    optimizer = watched(model)
    train(model, optimizer)
    held = {name: value.clone() for name, value in optimizer.state[model[0].weight].items()}
    before = [p.clone() for p in model[0].parameters()]
    classified(model, *batch(0)).backward()  # a gradient that the freezing comes too late for
    model[0].requires_grad_(False)
    for seed in range(3):
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
        classified(model, *batch(seed)).backward()
    torch.testing.assert_close(optimizer.state[model[0].weight], held, rtol=0, atol=0)
    torch.testing.assert_close(list(model[0].parameters()), before, rtol=0, atol=0)
    model[0].requires_grad_(True)
    train(model, optimizer, seeds=range(3))
    assert optimizer.state[model[0].weight]["step"] == held["step"] + 3


class Experts(nn.Module):
    """Rows 0 to ``first`` are for one expert, the others for the second."""

    def __init__(self, kind, first):
        super().__init__()
        self.experts, self.head, self.first = nn.ModuleList([kind(), kind()]), nn.Linear(16, CLASSES), first

    def forward(self, x, rows):
        parts = [(expert, x[rows[chosen]]) for expert, chosen in zip(self.experts, self.chosen(rows), strict=True)]
        return self.head(torch.cat([self.states(expert, part) for expert, part in parts if len(part)]).relu())

    def chosen(self, rows):
        return rows < self.first, rows >= self.first

    def states(self, expert, part):
        return expert(part.reshape(len(part), 3, 2))[0][:, -1] if isinstance(expert, nn.GRU) else expert(part)


def test_an_expert_remembers_as_much_in_one_batch_as_in_parts_of_it():
    memories = []
    for parts in (1, 4):
        model = made(network=lambda: Experts(lambda: nn.Linear(INPUTS, 16), 12))
        optimizer = watched(model)
        x, y = batch(0)
        for rows in torch.arange(16).chunk(parts):  # the last part has those of the second expert
            (F.cross_entropy(model(x, rows), y[rows], reduction="sum") / 16).backward()
        optimizer.step()
        memories.append(optimizer.get_param_eligibility(model.experts[1].weight))
    torch.testing.assert_close(memories[0], memories[1])


def test_the_layer_above_experts_does_not_take_the_rows_of_the_smallest_for_the_batch():
    moved = []
    for first in (8, 15):
        model = made(network=lambda: Experts(lambda: nn.GRU(2, 16, batch_first=True), first))  # noqa: B023
        model.experts[1].load_state_dict(model.experts[0].state_dict())  # so that the head sees the same
        optimizer, before = watched(model), model.head.weight.clone()
        F.cross_entropy(model(batch(0)[0], torch.arange(16)), batch(0)[1]).backward()
        optimizer.step()
        moved.append(float((model.head.weight - before).norm()))
    assert 0.7 < moved[0] / moved[1] < 1.0  # examples of the largest: sqrt(8 / 15)


@pytest.mark.parametrize("set_to_none", [False, True])
def test_a_bias_that_is_frozen_late_is_like_one_without_a_gradient(set_to_none):
    ends = []
    for cleared in (False, True):
        model = made()
        optimizer = watched(model)
        train(model, optimizer)
        classified(model, *batch(0)).backward()
        model.encoder.bias.requires_grad_(False)
        if cleared:
            model.encoder.bias.grad = None
        for seed in range(3):
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
            classified(model, *batch(seed)).backward()
        ends.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(ends[0], ends[1])


def test_states_that_the_network_changes_in_place_are_remembered_as_they_were():
    memories = []
    for in_place in (False, True):
        model = made(network=InOrder)
        optimizer = watched(model)
        x, y = batch(0)
        states = model.gru(x[..., None])[0]
        states = states.add_(1) if in_place else states + 1
        F.cross_entropy(model.head(states[:, -1]), y).backward()
        optimizer.step()
        memories.append(optimizer.get_param_eligibility(model.gru.weight_hh_l0))
    torch.testing.assert_close(memories[0], memories[1])


def test_errors_are_those_of_the_layer_itself_when_a_hook_replaces_its_output():
    model = nn.Sequential(nn.Linear(INPUTS, 4), nn.ReLU())
    model[0].register_forward_hook(lambda module, inputs, output: output.relu().mean(0))
    watcher = NMDACoincidence(model)
    model(batch(0)[0]).sum().backward()
    activity = watcher.synapses[0].take()
    made_by = activity.postsynaptic.mT @ activity.presynaptic
    torch.testing.assert_close(made_by, watcher.synapses[0].gradient())


def test_gradients_that_are_added_out_of_place_keep_all_their_passes():
    model = made()
    watcher = NMDACoincidence(model)
    for seed in range(3):
        classified(model, *batch(seed)).backward(create_graph=True)
    assert {synapses.take().examples for synapses in watcher.synapses[:2]} == {48}


def test_a_layer_inside_and_outside_a_checkpoint_is_seen_in_both():
    layer = nn.Linear(INPUTS, INPUTS)
    watcher = NMDACoincidence(layer)
    x = batch(0)[0].requires_grad_()
    inside = torch.utils.checkpoint.checkpoint(layer, layer(x), use_reentrant=True)
    layer(inside).square().mean().backward()
    activity = watcher.synapses[0].take()
    assert activity.rows == 48
    torch.testing.assert_close(activity.postsynaptic.mT @ activity.presynaptic, watcher.synapses[0].gradient())
