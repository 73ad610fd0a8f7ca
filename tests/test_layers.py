"""What each kind of layer shows to the watcher: which rows, of how many examples, and from which pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sp import NMDACoincidence
from tests.test_watching import CLASSES, INPUTS, batch, watched


class Sentences(nn.Module):
    """Predicts one class for a whole sequence, from the last state of a recurrent layer."""

    def __init__(self, kind):
        super().__init__()
        self.encoder, self.head = kind(INPUTS, 16, batch_first=True), nn.Linear(16, CLASSES)

    def forward(self, x):
        _, state = self.encoder(x)
        return self.head(state[0][-1] if isinstance(state, tuple) else state[-1])


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_recurrent_layer_of_which_only_the_last_state_is_used_learns(kind, recwarn):
    torch.manual_seed(0)
    model = Sentences(kind)
    optimizer = watched(model)
    before = [p.clone() for p in model.encoder.parameters()]
    for seed in range(5):
        x, y = batch(seed)
        optimizer.zero_grad()
        F.cross_entropy(model(x[:, None].repeat(1, 4, 1)), y).backward()
        optimizer.step()
    assert not recwarn and all((p - q).norm() > 1e-3 for p, q in zip(model.encoder.parameters(), before, strict=True))


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("given", [True, False], ids=["a first state", "none"])
def test_of_packed_sequences_no_padding_is_seen(kind, batch_first, given):
    torch.manual_seed(0)
    layer = kind(INPUTS, 4, batch_first=batch_first, bidirectional=True)
    sequences, first = [torch.randn(length, INPUTS) for length in (2, 5, 3)], torch.randn(2, 3, 4) if given else None
    padded = nn.utils.rnn.pad_sequence(sequences, batch_first)
    packed = nn.utils.rnn.pack_padded_sequence(padded, [2, 5, 3], batch_first, enforce_sorted=False)
    watcher = NMDACoincidence(layer)
    layer(packed, first)[0].data.square().sum().backward()
    together = {synapses.name: synapses.take().presynaptic for synapses in watcher.synapses}
    apart = {name: [] for name in together}
    for number, x in enumerate(sequences):
        layer.zero_grad()
        layer(x, None if first is None else first[:, number])[0].square().sum().backward()
        for synapses in watcher.synapses:
            apart[synapses.name].append(synapses.take().presynaptic)
    assert len(apart) == 4
    for name, rows in apart.items():
        torch.testing.assert_close(together[name], torch.cat(rows, 1))


def test_indices_of_a_batch_are_so_many_examples_and_a_single_one_is_one():
    torch.manual_seed(0)
    layer = nn.Embedding(7, 4)
    watcher, examples = NMDACoincidence(layer), []
    for indices in (torch.arange(5), torch.arange(5)[:, None], torch.tensor(2)):
        layer(indices).sum().backward()
        examples.append(watcher.synapses[0].take().examples)
    assert examples == [5, 5, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_under_autocast_learns(dtype):
    torch.manual_seed(0)
    model = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, CLASSES)])
    optimizer = watched(model)
    before = model[0].self_attn.out_proj.weight.clone()
    for seed in range(3):
        x, y = batch(seed)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = F.cross_entropy(model[1](model[0](F.pad(x, (0, 2))[:, None].repeat(1, 4, 1)).mean(1)), y)
        loss.backward()
        optimizer.step()
    assert (model[0].self_attn.out_proj.weight - before).norm() > 1e-3


def test_attention_remembers_what_entered_its_last_projection_before_the_step():
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    optimizer, other = watched(layer, lr=1.0), NMDACoincidence(layer)
    x = torch.randn(6, 4, 8)
    layer(x, x, x)[0].square().sum().backward()
    (rows,) = [synapses.take().presynaptic for synapses in other.synapses if synapses.name == "out_proj.weight"]
    optimizer.step()
    state = optimizer.state[layer.out_proj.weight]
    kept, expected = state["inputs"] + state["inputs_before"], rows.mT @ rows
    torch.testing.assert_close((kept / kept.norm()).float(), expected / expected.norm())


class Joining(nn.Linear):
    def forward(self, one, other):
        return super().forward(torch.cat([one, other], -1))


class Padding(nn.Conv1d):
    def forward(self, signal):
        return F.conv1d(F.pad(signal, (0, 2)), self.weight, self.bias)


def test_a_subclass_with_a_forward_of_its_own_follows_the_diagonal_rule():
    torch.manual_seed(0)
    model = nn.ModuleDict({"join": Joining(INPUTS, 8), "pad": Padding(1, 2, 3), "head": nn.Linear(16, CLASSES)})
    optimizer = watched(model)
    assert list(optimizer.coincidence.covered()) == ["head.weight", "head.bias"]
    before = [p.clone() for p in model.parameters()]
    x, y = batch(0)
    features = model["pad"](signal=model["join"](x[:, :2], x[:, 2:])[:, None]).flatten(1)
    F.cross_entropy(model["head"](features), y).backward()
    optimizer.step()
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


class LastState(nn.GRU):
    def forward(self, x):
        return super().forward(x.flip(1))[0][:, -1]


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x)[0]


def test_so_does_a_recurrent_or_attention_layer_with_a_custom_forward():
    torch.manual_seed(0)
    model = nn.ModuleDict({"attention": SelfAttention(4, 2), "last": LastState(4, 8), "head": nn.Linear(8, CLASSES)})
    optimizer = watched(model)
    assert list(optimizer.coincidence.covered()) == ["head.weight", "head.bias"]
    before = {name: p.clone() for name, p in model.named_parameters()}
    x, y = batch(0)
    features = model["last"](model["attention"](x[:, :, None] * torch.ones(4)))
    F.cross_entropy(model["head"](features), y).backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.grad.any()} >= {"attention.out_proj.weight"}


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])
def test_a_recurrent_layer_s_first_state_is_the_one_it_was_given(kind):
    torch.manual_seed(0)
    layer, first = kind(INPUTS, 3, batch_first=True), torch.randn(1, 4, 3)
    watcher = NMDACoincidence(layer)
    states, _ = layer(torch.randn(4, 5, INPUTS), first)
    states.sum().backward()
    (hidden,) = (synapses for synapses in watcher.synapses if "hh" in synapses.name)
    before = torch.cat([first.transpose(0, 1), states[:, :-1]], 1)
    torch.testing.assert_close(hidden.take().presynaptic[0, :, :3], before.reshape(-1, 3))
