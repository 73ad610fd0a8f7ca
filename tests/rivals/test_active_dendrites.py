"""Active dendrites in hand-computed cases: segments gate units, the strongest are active, prototypes infer the task."""

import math

import pytest
import torch
from torch import nn

from sp.lab.experiment import Experiment, run
from sp.lab.networks import mlp
from sp.rivals.active_dendrites import ActiveDendrites, DendriticLinear, k_winners
from sp.rivals.dendritic import ActiveDendritesLearner


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def layer():
    linear = nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 1.0]]))
        linear.bias.copy_(torch.tensor([0.5, 0.0]))
    made = DendriticLinear(linear, context=2, segments=2)
    with torch.no_grad():  # (units, segments, context)
        made.segments.copy_(torch.tensor([[[1.0, 0.0], [-3.0, 2.0]], [[0.0, 4.0], [2.0, -1.0]]]))
    return made


@pytest.mark.parametrize(
    ("context", "gates"),
    [
        ([1.0, 0.0], (-3.0, 2.0)),  # unit 0: responses 1 and -3, the stronger one shuts; unit 1: 0 and 2
        ([0.0, 1.0], (2.0, 4.0)),
        ([0.0, 0.0], (0.0, 0.0)),  # no context: every gate half open
    ],
)
def test_the_strongest_segment_gates_its_unit(layer, context, gates):
    x = torch.tensor([[1.0, 1.0]])  # W x + b = (3.5, 0)
    x2 = torch.tensor([[0.0, 2.0]])  # (4.5, 2)
    context = torch.tensor([context])
    assert layer(x, context)[0].tolist() == pytest.approx([3.5 * sigmoid(gates[0]), 0.0])
    assert layer(x2, context)[0].tolist() == pytest.approx([4.5 * sigmoid(gates[0]), 2 * sigmoid(gates[1])])


def test_only_the_strongest_segment_learns_and_only_where_the_context_is(layer):
    layer(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]])).sum().backward()
    slope = sigmoid(3) * sigmoid(-3)
    expected = torch.zeros(2, 2, 2)
    expected[0, 1, 0] = 4.5 * slope
    expected[1, 1, 0] = 2 * sigmoid(2) * sigmoid(-2)
    torch.testing.assert_close(layer.segments.grad, expected)


def test_k_winners_keep_the_largest_as_they_are():
    x = torch.tensor([[0.3, -1.0, 2.0, 0.5], [-4.0, -1.0, -2.0, -3.0]])
    assert k_winners(x, 0.5).equal(torch.tensor([[0, 0, 2.0, 0.5], [0, -1.0, -2.0, 0]]))
    assert k_winners(x, 0.3).count_nonzero(1).tolist() == [2, 2] and k_winners(x, 1.0).equal(x)  # rounded up


@pytest.fixture
def two_tasks():
    torch.manual_seed(0)
    model = ActiveDendrites(mlp(2, (3,), 2), contexts=3, segments=1, winners=1.0)
    model.observe(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
    model.observe(torch.tensor([[4.0, 3.0], [2.0, 1.0]]))
    model.end_task()
    model.observe(torch.tensor([[-2.0, 5.0]]))
    return model


def test_a_prototype_is_the_mean_of_its_task_and_the_nearest_one_is_the_context(two_tasks):
    assert two_tasks.prototypes.tolist() == [[2.0, 1.0], [-2.0, 5.0], [0.0, 0.0]]
    x = torch.tensor([[2.0, 2.0], [0.0, 0.0], [-1.0, 6.0]])  # the third task was never seen, so it has no prototype
    assert two_tasks.infer(x).tolist() == [0, 0, 1]


def test_the_context_is_given_or_the_task_that_is_learnt_or_inferred(two_tasks):
    x = torch.tensor([[2.0, 2.0], [-1.0, 6.0]])
    given = [two_tasks(x, task) for task in (0, 1)]
    assert not torch.equal(*given)
    assert torch.equal(two_tasks(x), given[1])  # in training it is the current task
    two_tasks.eval()
    assert torch.equal(two_tasks(x), torch.stack([given[0][0], given[1][1]]))
    hidden = two_tasks.hidden[0]
    by_hand = (x @ hidden.linear.weight.T + hidden.linear.bias) * torch.sigmoid(hidden.segments[:, 0, 1])
    by_hand = by_hand @ two_tasks.readout.weight.T + two_tasks.readout.bias
    torch.testing.assert_close(given[1], by_hand)


def test_a_learner_starts_from_the_weights_of_the_plain_network_and_learns_as_its_equation():
    torch.manual_seed(0)
    plain = mlp(2, (3,), 2)
    weights = plain[0].weight.clone()
    learner = ActiveDendritesLearner(plain, base="sgd", lr=0.1, contexts=2, segments=2)
    assert torch.equal(learner.model.hidden[0].linear.weight, weights)
    before = learner.model.hidden[0].segments.clone()
    learner.learn(torch.tensor([[1.0, -1.0]]), torch.tensor([1]), None)
    changed = (learner.model.hidden[0].segments != before).any(0).any(0)
    assert changed.tolist() == [True, False]  # of the context of the first task only


def test_told_of_the_task_it_keeps_more_than_where_it_has_to_infer_it_and_than_without_dendrites():
    five = {"tasks": 5, "epochs": 3}
    options = {"base": "adam", "lr": 3e-3, "contexts": 5}
    plain = run(Experiment(options={"lr": 3e-3}, **five)).accuracy[-1].mean()
    guessing = run(Experiment(optimizer="active_dendrites", options=options, **five))
    told = run(Experiment(optimizer="active_dendrites", options={**options, "told": True}, **five))
    assert told.accuracy[-1].mean() > guessing.accuracy[-1].mean() + 0.1 > plain + 0.2
    assert guessing.parameters == told.parameters == 17_610 + 5 * 10 * 200


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DendriticLinear(nn.ReLU(), 2, 2), TypeError, "linear must be a torch.nn.Linear"),
        (lambda: DendriticLinear(nn.Linear(2, 2), 0, 2), ValueError, "context must be a whole number >= 1, got 0"),
        (lambda: DendriticLinear(nn.Linear(2, 2), 2, 1.5), TypeError, "segments must be a whole number"),
        (lambda: ActiveDendrites(nn.Linear(2, 2)), TypeError, "Linear layers with a ReLU.*sp.lab.networks.mlp"),
        (lambda: ActiveDendrites(mlp(2, (3,), 2), winners=0.0), ValueError, r"winners must be .* \(0, 1\], got 0"),
    ],
)
def test_errors_name_what_is_wrong(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_one_task_too_many_is_an_error(two_tasks):
    two_tasks.end_task()
    two_tasks.end_task()
    with pytest.raises(ValueError, match="contexts must be at least the number of tasks, got 3 for task 4"):
        two_tasks.observe(torch.zeros(1, 2))
