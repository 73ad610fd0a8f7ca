"""The bridge to perforatedai: what was learnt survives each change of the network, and nothing is left behind."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sp import ConsolidatingPlasticityOptimizer, NMDACoincidence, SelectivePlasticityOptimizer
from sp.lab.networks import mlp
from sp.rivals import make_learner
from sp.rivals.dendrites import Dendrites, acting, coincidence_optimizer
from sp.rivals.dendritic import GrowingLearner, held_out

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("perforatedai") is None, reason="needs the extra `dendrites`: make dendrites"
)
BASES = ["adam", "selective", "consolidating", "coincidence"]


def network(seed=0):
    torch.manual_seed(seed)
    return mlp(6, (5, 4), 3)


def batch(n=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator), torch.randint(3, (n,), generator=generator)


def learner_of(base, **options):
    options = {"lr": 0.01, **({"warmup_steps": 2} if base == "selective" else {}), **options}
    return GrowingLearner(network(), base, check_every=10**6, **options)


def learn(learner, steps, seed=0):
    for step in range(steps):
        learner.learn(*batch(seed=seed + step), None)


def score(learner, *scores):
    for value in scores:
        learner.optimizer = learner.dendrites.validated(value, learner.optimizer, learner._optimizer_of)
        learner.model = learner.dendrites.model


def states(learner):
    """Copies of every tensor of the optimizer's state, by the parameter's name."""
    return {
        name: {key: value.clone() for key, value in learner.optimizer.state[p].items()}
        for name, p in learner.model.named_parameters()
        if learner.optimizer.state.get(p)
    }


GROW = (0.5, 0.5, 0.5, 0.5, 0.5)  # no better than the first, three times in a row


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("perforatedai")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "perforatedai", None)  # how Python marks a missing package
    with pytest.raises(ImportError, match=r"perforatedai: pip install 'selective-plasticity\[dendrites\]'"):
        Dendrites(network())


@needs_package
@pytest.mark.parametrize("base", BASES)
def test_old_synapses_keep_their_state_bit_by_bit_and_new_ones_have_none(base):
    learner = learner_of(base, most=2)
    learn(learner, 6)
    before, counts = states(learner), {k: v for k, v in learner.optimizer.param_groups[0].items() if k != "params"}
    score(learner, *GROW)
    assert learner.dendrites.count == 1
    after = states(learner)
    assert after.keys() == before.keys() and all("main_module" in name for name in before)
    for name in before:
        assert after[name].keys() == before[name].keys()
        assert all(torch.equal(after[name][key], value) for key, value in before[name].items())
    for key, value in counts.items():
        assert learner.optimizer.param_groups[0][key] is value or learner.optimizer.param_groups[0][key] == value
    learn(learner, 3, seed=50)
    assert {name for name in states(learner) if "layers.0" in name} == {
        f"{layer}.dendrite_module.layers.0.{kind}" for layer in (0, 2, 4) for kind in ("weight", "bias")
    }


@needs_package
def test_the_second_dendrite_leaves_the_first_one_s_state_and_weights_alone():
    learner = learner_of("selective", most=2)
    learn(learner, 4)
    score(learner, *GROW)
    learn(learner, 4, seed=10)
    learner.dendrites.new_scores()
    before = states(learner)
    score(learner, 0.6, 0.6, 0.6, 0.6)
    assert learner.dendrites.count == 2
    after = states(learner)
    old, new = before["0.dendrites_to_top.0"]["eligibility"], after["0.dendrites_to_top.1"]["eligibility"]
    assert old.abs().sum() > 0 and torch.equal(new[:1], old) and not new[1:].any() and new.shape == (2, 5)
    first = "0.dendrite_module.layers.0.weight"
    assert torch.equal(after[first]["eligibility"], before[first]["eligibility"])
    assert not [name for name in after if ".layers.1." in name]
    learn(learner, 2, seed=20)
    trained = states(learner)["0.dendrites_to_top.1"]["eligibility"]
    assert trained.abs().sum(1).gt(0).all()
    score(learner, 0.4, 0.4, 0.4, 0.4)  # undone and redrawn under the same name
    again = states(learner)
    assert learner.dendrites.count == 2 and not [name for name in again if ".layers.1." in name]
    kept = again["0.dendrites_to_top.1"]["eligibility"]
    assert torch.equal(kept[0], trained[0]) and not kept[1].any()


@needs_package
def test_dendrites_that_did_not_help_are_drawn_anew_without_the_old_ones_state():
    learner = learner_of("adam", most=2, tries=2)
    learn(learner, 3)
    score(learner, *GROW)
    learn(learner, 3, seed=10)
    failed = dict(learner.model.named_parameters())["0.dendrite_module.layers.0.weight"].clone()
    score(learner, 0.4, 0.4, 0.4, 0.4)
    assert learner.dendrites.count == 1 and not learner.dendrites.finished
    assert not torch.equal(dict(learner.model.named_parameters())["0.dendrite_module.layers.0.weight"], failed)
    assert not [name for name in states(learner) if "layers" in name or "to_top" in name]
    score(learner, 0.4, 0.4, 0.4, 0.4)  # no more tries: back to the best network, which had none
    assert learner.dendrites.finished and learner.dendrites.count == 0
    assert sum(p.numel() for p in acting(learner.model)) == sum(p.numel() for p in network().parameters())
    assert len(states(learner)) == 6
    with pytest.raises(RuntimeError, match="new_scores"):
        score(learner, 0.5)


@needs_package
@pytest.mark.parametrize("kind", [torch.optim.Adam, SelectivePlasticityOptimizer, ConsolidatingPlasticityOptimizer])
def test_an_optimizer_of_one_s_own_is_rebuilt_as_it_was(kind):
    def make(model, lr=0.01):
        if kind is ConsolidatingPlasticityOptimizer:
            return coincidence_optimizer(model, lr=lr)
        watched = {} if kind is torch.optim.Adam else {"coincidence": NMDACoincidence(model)}
        return kind(model.parameters(), lr=lr, **watched)

    dendrites = Dendrites(network())
    optimizer = first = make(dendrites.model, lr=0.02)
    for step in range(5):
        optimizer.zero_grad()
        F.cross_entropy(dendrites.model(batch(seed=step)[0]), batch(seed=step)[1]).backward()
        optimizer.step()
        optimizer = dendrites.validated(0.5, optimizer, make)
    assert dendrites.count == 1 and optimizer is not first and type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == 0.02
    old, new = (o.state[o.param_groups[0]["params"][0]] for o in (first, optimizer))
    assert old and all(new[key] is value for key, value in old.items())


@needs_package
def test_new_dendrites_change_no_answer_at_first_and_all_of_the_network_learns():
    learner = learner_of("coincidence")
    learn(learner, 30)
    x, _ = batch(seed=99)
    best = learner.logits(x)
    score(learner, *GROW)
    torch.testing.assert_close(learner.logits(x), best)
    others, late = learner.optimizer.param_groups
    assert len(late["params"]) == 3 and others["step_count"] == 30
    assert late["born"] == float(others["shared"]["age"])
    before = {name: p.clone() for name, p in learner.model.named_parameters()}
    learn(learner, 5, seed=100)
    moved = {name for name, p in learner.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "parent_module" not in name}
    assert all(p.isfinite().all() for p in learner.model.parameters())


@needs_package
def test_it_is_quiet_and_writes_only_where_it_is_told(tmp_path):
    place, folder = tmp_path / "here", tmp_path / "there"
    place.mkdir()
    code = (
        "from tests.rivals.test_dendrites import *; import matplotlib; backend = matplotlib.get_backend()\n"
        f"learner = learner_of('adam', folder={str(folder)!r}); learn(learner, 2); score(learner, *GROW)\n"
        "assert matplotlib.get_backend() == backend and learner.dendrites.count == 1"
    )
    path = os.pathsep.join([os.getcwd(), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], cwd=place, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(place.iterdir()) == []
    assert "Saved" in (folder / "package.log").read_text() and (folder / "growth" / "best_model.pt").exists()


@needs_package
def test_networks_grow_side_by_side():
    alone = learner_of("adam")
    learn(alone, 2)
    torch.manual_seed(1)
    score(alone, *GROW)
    first, second = learner_of("adam"), learner_of("adam")
    learn(first, 2)
    learn(second, 1)
    torch.manual_seed(1)
    for value in GROW:
        if value is not GROW[-1] or second.dendrites.count == 0:
            score(second, 0.9)
        torch.manual_seed(1)
        score(first, value)
    assert first.dendrites.count == 1
    assert torch.equal(first.logits(batch()[0]), alone.logits(batch()[0]))


@needs_package
def test_a_wrapped_network_without_a_dendrite_has_the_published_number_of_parameters():
    model = mlp(784, (256, 256), 10)
    assert sum(p.numel() for p in model.parameters()) == 269_322
    dendrites = Dendrites(model)
    assert dendrites.count == 0
    assert sum(p.numel() for p in dendrites.model.parameters()) == 538_644
    assert sum(p.numel() for p in acting(dendrites.model)) == 269_322


@needs_package
def test_what_the_package_gives_up_on_is_an_error_with_its_words(tmp_path):
    with pytest.raises(RuntimeError, match=r"perforatedai stopped.*without a name"):
        Dendrites(nn.Linear(3, 2), tmp_path)


@needs_package
@pytest.mark.parametrize(
    ("options", "message"),
    [({"patience": 0}, "patience must be a whole number >= 1, got 0"), ({"base": "none"}, "base must be one of")],
)
def test_errors_name_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        make_learner("dendrites", network, (6, (5,), 3), torch.device("cpu"), options)


def test_the_same_tenth_is_held_out_in_every_order_and_is_not_learnt():
    x, _ = batch(2000)
    held = held_out(x)
    assert 0.07 < held.float().mean() < 0.13
    order = torch.randperm(len(x))
    assert torch.equal(held_out(x[order]), held[order]) and torch.equal(held_out(x[:7]), held[:7])


@needs_package
def test_held_out_examples_teach_nothing():
    x, y = batch(400)
    held = held_out(x)
    one, other = learner_of("adam"), learner_of("adam")
    one.learn(x, y, None)
    other.learn(x, torch.where(held, (y + 1) % 3, y), None)
    assert all(torch.equal(p, q) for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True))


@needs_package
def test_a_score_is_of_the_task_s_units_and_nothing_of_it_is_left_when_the_task_ends():
    x, y = batch(400)
    learner = learner_of("adam")
    learner.learn(x, y, nn.functional.one_hot(y, 3).bool())  # only the right unit counts
    assert learner._score() == 1.0
    score(learner, 0.9)
    learner.end_task(x, y, None)
    best = [learner.dendrites._tracker.member_vars[f"{kind}_best_validation_score"] for kind in ("current", "global")]
    assert learner.validation == [] and best == [0, 0]
