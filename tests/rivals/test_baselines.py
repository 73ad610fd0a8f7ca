"""Each baseline follows its equation and has an effect: one test of its arithmetic, one of its effect."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sp.lab.experiment import Experiment, run
from sp.lab.networks import mlp
from sp.replay import ReplayBuffer
from sp.rivals import METHODS, OPTIMIZERS, RIVALS, make_learner, needs, projections, rehearses
from sp.rivals.bounds import ChanceLearner, JointLearner
from sp.rivals.closed_form import RanPACLearner, RidgeLearner, SLDALearner
from sp.rivals.distillation import LwF
from sp.rivals.learner import GradientLearner
from sp.rivals.optimizers import UPGD
from sp.rivals.penalties import EWC, L2, MAS, SI, L2Init, OnlineEWC, mean_over_examples
from sp.rivals.projections import GPM, NCL, OWM, OnlineOWM, extended, gradient, kronecker_sum
from sp.rivals.rehearsal import AGEM, ERACE, DERpp, ReplaySource
from sp.rivals.stable import StableSGD


@cache
def first_task_left(optimizer, capacity=0, tasks=2, **options):
    """Accuracy on the first task after all are learnt; class-incremental, five passes over digits."""
    return run(
        Experiment(optimizer=optimizer, options=options, tasks=tasks, epochs=5, replay_capacity=capacity)
    ).accuracy[-1, 0]


def batch(n=12, inputs=5, outputs=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, inputs, generator=generator), torch.randint(outputs, (n,), generator=generator)


def network(inputs=5, hidden=(4,), outputs=3, seed=0):
    torch.manual_seed(seed)
    return mlp(inputs, hidden, outputs)


def store(capacity=50, size=8):
    return ReplaySource(ReplayBuffer(capacity, seed=0), size, lambda y: None)


# -- effects --


@pytest.mark.parametrize(
    ("rival", "options"),
    [
        ("l2", {"lr": 1e-3, "strength": 1.0}),
        ("ewc", {"lr": 1e-3, "strength": 1e3}),
        ("online_ewc", {"lr": 1e-3, "strength": 1e3}),
        ("si", {"lr": 1e-3, "strength": 1e3}),
        ("mas", {"lr": 1e-3, "strength": 1.0}),
        ("owm", {"lr": 0.3, "alpha": 0.1}),
        ("online_owm", {"lr": 0.3, "alpha": 0.1}),
        ("gpm", {"lr": 0.3, "threshold": 0.95}),
        ("ncl", {"lr": 0.1, "prior": 1e-4}),
    ],
)
def test_penalties_and_projections_keep_some_of_the_first_task(rival, options):
    base = "adam" if rival in ("l2", "ewc", "online_ewc", "si", "mas") else "sgd"
    assert first_task_left(base, lr=options["lr"]) < 0.05
    assert first_task_left(rival, **options) > 0.15


def test_a_penalty_of_no_strength_is_the_base_optimizer():
    plain = run(Experiment(options={"lr": 1e-3})).accuracy
    assert np.array_equal(run(Experiment(optimizer="si", options={"strength": 0.0, "lr": 1e-3})).accuracy, plain, True)


def test_the_old_network_s_answers_keep_the_old_task():
    domain = {"scenario": "domain", "tasks": 5, "epochs": 5}
    kept = run(Experiment(optimizer="lwf", options={"strength": 3.0, "lr": 1e-3}, **domain)).accuracy[-1, 0]
    assert kept > run(Experiment(options={"lr": 1e-3}, **domain)).accuracy[-1, 0] + 0.2


@pytest.mark.parametrize("rival", ["derpp", "er_ace"])
def test_rehearsal_keeps_the_first_of_five_tasks(rival):
    assert first_task_left("sgd", tasks=5, lr=0.1) < 0.05
    assert first_task_left(rival, tasks=5, capacity=50, lr=0.1) > 0.5


def test_stable_sgd_keeps_some_of_the_first_of_five_tasks():
    assert first_task_left("stable_sgd", tasks=5, lr=0.3, decay=0.4) > 0.2


def test_agem_forgets_less_of_the_first_permutation():
    permuted = {"stream": "permuted", "scenario": "domain", "tasks": 3, "epochs": 3, "options": {"lr": 0.1}}
    kept = run(Experiment(optimizer="agem", replay_capacity=100, **permuted)).accuracy[-1, 0]
    assert kept > run(Experiment(optimizer="sgd", **permuted)).accuracy[-1, 0] + 0.03


def test_joint_training_is_a_ceiling_and_chance_a_floor():
    five = {"tasks": 5, "epochs": 5}
    joint = run(Experiment(optimizer="joint", options={"lr": 3e-3}, **five)).accuracy
    assert joint[-1].mean() > 0.93 and joint[-1, 0] > 0.9
    assert 0.05 < run(Experiment(optimizer="chance", **five)).accuracy[-1].mean() < 0.15
    assert 0.4 < run(Experiment(optimizer="chance", scenario="task", **five)).accuracy[-1].mean() < 0.6


def test_every_method_learns_with_known_tasks():
    others = {"chance", "sgd", "momentum", "upgd", "agem", "derpp", "er_ace", "owm", "online_owm", "gpm", "dendrites"}
    for method in set(METHODS) - others:
        outcome = run(Experiment(optimizer=method, tasks=5, scenario="task", epochs=2))
        assert outcome.accuracy[-1].mean() > 0.6, method


# -- what a learner is told --


@pytest.mark.parametrize("method", ["adam", "ranpac", "ridge", "slda", "coincidence"])
def test_who_does_not_ask_is_not_told_of_a_boundary(method, monkeypatch):
    def told(*_):
        raise AssertionError("told of a boundary")

    for learner in (GradientLearner, RanPACLearner, RidgeLearner, SLDALearner):
        monkeypatch.setattr(learner, "end_task", told, raising=False)
    run(Experiment(optimizer=method))


def test_who_asks_is_given_each_task_s_training_set_once(monkeypatch):
    seen = []
    monkeypatch.setattr(EWC, "end_task", lambda self, x, y, allowed: seen.append(sorted(y.unique().tolist())))
    run(Experiment(optimizer="ewc", tasks=5, epochs=2))
    assert seen == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_needs_are_declared():
    told = {method for method in METHODS if needs(method).boundaries}
    penalties = {"ewc", "gpm", "joint", "l2", "lwf", "mas", "ncl", "online_ewc", "owm", "si", "stable_sgd"}
    assert told == penalties | {"active_dendrites", "agem", "dendrites"}
    assert {method for method in METHODS if needs(method).second_network} == {"lwf"}
    assert {method for method in METHODS if needs(method).examples == "buffer"} == set(filter(rehearses, METHODS))
    assert needs("adam", replay_capacity=10).examples == "buffer" and needs("adam").examples == "none"
    assert all(hasattr(RIVALS[m], "end_task") == needs(m).boundaries for m in RIVALS)


@pytest.mark.parametrize("change", [{}, {"replay_capacity": 10, "replay_adds": "whole"}])
def test_rehearsal_needs_a_buffer_of_its_own(change):
    with pytest.raises(ValueError, match=r"'derpp' stores the new examples.*replay_capacity >= 1"):
        Experiment(optimizer="derpp", **change)


@pytest.mark.parametrize(
    ("rival", "options", "message"),
    [
        (L2, {"strength": -1}, r"strength must be a finite number in \[0, inf\), got -1"),
        (EWC, {"samples": 0}, "samples must be a whole number >= 1, got 0"),
        (OnlineEWC, {"gamma": 2.0}, r"gamma must be a finite number in \[0, 1\], got 2.0"),
        (SI, {"xi": 0}, r"xi must be a finite number in \(0, inf\), got 0"),
        (LwF, {"temperature": 0}, "temperature must be"),
        (OWM, {"alpha": 0}, "alpha must be"),
        (GPM, {"threshold": 1.5}, "threshold must be"),
        (NCL, {"prior": 0.0}, "prior must be"),
        (StableSGD, {"dropout": 1.0}, "dropout must be"),
        (MAS, {"base": "adamm"}, "optimizer must be one of 'adagrad', 'adam'"),
    ],
)
def test_wrong_options_are_named(rival, options, message):
    with pytest.raises(ValueError, match=message):
        rival(network(), **options)
    with pytest.raises(ValueError, match="beta must be"):
        UPGD(network().parameters(), beta=1.0)


# -- arithmetic --


def test_momentum_is_the_usual_one():
    group = OPTIMIZERS["momentum"](network(), lr=0.1).param_groups[0]
    assert group["momentum"] == 0.9 and group["nesterov"] is False


def test_upgd_s_arithmetic():
    w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    optimizer = UPGD([w], lr=0.1, decay=0.01, beta=0.9, sigma=0.0)
    expected, utility = np.array([1.0, -2.0, 0.5]), np.zeros(3)
    for t, g in enumerate(([-1.0, 0.5, 2.0], [0.3, 1.0, -1.0]), 1):
        w.grad = torch.tensor(g)
        optimizer.step()
        utility = 0.9 * utility + 0.1 * (-np.array(g) * expected)
        share = 1 / (1 + np.exp(-(utility / (1 - 0.9**t)) / utility.max()))
        expected = (1 - 0.1 * 0.01) * expected - 0.1 * np.array(g) * (1 - share)
    np.testing.assert_allclose(w.detach().numpy(), expected, rtol=1e-5)


def test_upgd_perturbs_what_is_useless_more():
    w = nn.Parameter(torch.tensor([10.0] * 500 + [-10.0] * 500))
    optimizer = UPGD([w], lr=1.0, beta=0.0, sigma=1.0)
    w.grad = torch.full((1000,), -0.1)
    before = w.detach().clone()
    torch.manual_seed(0)
    optimizer.step()
    moved = w.detach() - before
    assert moved[:500].std() < 0.5 * moved[500:].std()


def test_stable_sgd_s_rate_falls_and_hidden_units_are_silenced_in_training_only():
    learner = StableSGD(network(hidden=(200,)), lr=0.1, dropout=0.5, decay=0.7)
    for expected in (0.1, 0.07, 0.049):
        assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        learner.end_task(*batch(), None)
    x, _ = batch()
    hidden = nn.Sequential(*learner.model[:2])
    assert ((hidden(x) == 0).float().mean() - 0.75).abs() < 0.05  # half by ReLU, half of the rest by dropout
    assert torch.equal(learner.logits(x), learner.logits(x))
    with pytest.raises(ValueError, match=r"nn\.ReLU"):
        StableSGD(nn.Linear(2, 2))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.Dropout()], ids=["batch norm", "dropout"])
@pytest.mark.parametrize("penalty", [EWC, OnlineEWC, MAS])
def test_a_penalty_on_a_network_with_other_answers_in_training_is_measured_in_evaluation(penalty, layer):
    model = nn.Sequential(nn.Linear(5, 4), layer, nn.Linear(4, 3))
    learner, (x, y) = penalty(model), batch()
    learner.learn(x, y, None)
    learner.end_task(x, y, None)
    assert all(module.training for module in model.modules())
    assert all(importance.isfinite().all() and importance.any() for importance in learner.importance)


@pytest.mark.parametrize("rival", ["ridge", "ranpac", "slda"])
def test_a_head_in_closed_form_takes_images_as_rows(rival):
    x, y = batch(60, inputs=12)
    found = []
    for shape in ((60, 12), (60, 3, 2, 2)):
        torch.manual_seed(0)
        sizes = (12, (20,), 3)
        learner = make_learner(rival, lambda: None, sizes, torch.device("cpu"), {}, None)
        learner.learn(x.reshape(shape), y, None)
        found.append(learner.logits(x.reshape(shape)))
    torch.testing.assert_close(*found)


def test_mean_over_examples_is_the_mean_of_each_example_s_gradient():
    model, (x, y) = network(), batch()
    found = mean_over_examples(model, F.cross_entropy, torch.square, x, y)
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for row, label in zip(x, y, strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(row[None]), label[None]), list(model.parameters()))
        expected = [total + g**2 / len(x) for total, g in zip(expected, gradients, strict=True)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def pulled(learner):
    """What the penalty adds to gradients of zero."""
    for p in learner.parameters:
        p.grad = torch.zeros_like(p)
    learner.adjust_gradients()
    return torch.cat([p.grad.flatten() for p in learner.parameters])


def learn_two_tasks(learner):
    """Anchors and Fisher informations of two tasks, the latter set by hand to 1 and 3."""
    anchors = []
    for value in (1.0, 3.0):
        learner._fisher = lambda x, allowed, value=value: [torch.full_like(p, value) for p in learner.parameters]
        with torch.no_grad():
            for p in learner.parameters:
                p += value
        anchors.append(torch.cat([p.detach().flatten() for p in learner.parameters]))
        learner.end_task(*batch(), None)
    with torch.no_grad():
        for p in learner.parameters:
            p.uniform_()
    return anchors, torch.cat([p.detach().flatten() for p in learner.parameters])


def test_ewc_is_a_spring_for_each_task():
    learner = EWC(network(), strength=2.0)
    (first, second), w = learn_two_tasks(learner)
    torch.testing.assert_close(pulled(learner), 2 * (1 * (w - first) + 3 * (w - second)))


def test_online_ewc_is_one_spring_at_the_last_task():
    learner = OnlineEWC(network(), strength=2.0, gamma=0.5)
    (_, second), w = learn_two_tasks(learner)
    torch.testing.assert_close(pulled(learner), 2 * (0.5 * 1 + 3) * (w - second))


def test_the_fisher_information_is_of_the_network_s_own_labels():
    learner, (x, _) = EWC(nn.Linear(2, 2, bias=False), samples=4000), batch(1, inputs=2)
    with torch.no_grad():
        learner.model.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.5]]))
    p = learner.logits(x).softmax(1)[0]
    torch.manual_seed(0)
    (found,) = learner._fisher(x.expand(4000, 2), None)
    # Var of the label times x x': F[i, j] = p_i (1 - p_i) x_j^2
    torch.testing.assert_close(found, (p * (1 - p))[:, None] * x[0] ** 2, rtol=0.05, atol=0)


def test_means_over_examples_of_a_recurrent_network_are_those_of_its_examples_one_by_one():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.head = nn.GRU(2, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.gru(x)[0].mean(1))

    torch.manual_seed(0)
    model, x, y = Reader(), torch.randn(5, 4, 2), torch.tensor([0, 1, 1, 0, 1])
    found = mean_over_examples(model, F.cross_entropy, torch.square, x, y)
    squares = []
    for row, label in zip(x, y, strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(row[None]), label[None]), list(model.parameters()))
        squares.append([gradient.square() for gradient in gradients])
    for mean, parts in zip(found, zip(*squares, strict=True), strict=True):
        torch.testing.assert_close(mean, torch.stack(parts).mean(0))


def test_l2_is_a_spring_of_strength_one_for_every_weight():
    learner = L2(network(), strength=0.5)
    assert pulled(learner).abs().max() == 0
    learner.end_task(*batch(), None)
    anchor = torch.cat([p.detach().flatten() for p in learner.parameters])
    with torch.no_grad():
        for p in learner.parameters:
            p += 2
    torch.testing.assert_close(pulled(learner), torch.full_like(anchor, 0.5 * 2))


def test_l2_init_pulls_every_weight_to_where_it_began():
    learner = L2Init(network(), strength=0.5)
    assert not learner.needs.boundaries and pulled(learner).abs().max() == 0
    with torch.no_grad():
        for p in learner.parameters:
            p -= 2
    torch.testing.assert_close(pulled(learner), torch.full_like(pulled(learner), 0.5 * -2))


def test_mas_is_the_dependence_of_the_output_on_each_weight():
    learner, (x, y) = MAS(nn.Linear(5, 3, bias=False)), batch()
    W = learner.model.weight.detach().numpy()
    expected = np.mean([np.abs(2 * np.outer(W @ row, row)) for row in x.numpy()], 0)
    learner.end_task(x, y, None)
    np.testing.assert_allclose(learner.importance[0].numpy(), expected, rtol=1e-5)


def test_mas_looks_at_the_units_of_the_task_only():
    learner, (x, y) = MAS(nn.Linear(5, 3, bias=False)), batch()
    allowed = torch.tensor([True, False, True]).expand(len(x), 3)
    learner.end_task(x, y, allowed)
    assert learner.importance[0][1].abs().max() == 0 and learner.importance[0][[0, 2]].min() > 0


def test_si_is_what_each_weight_did_for_the_loss():
    learner = SI(nn.Linear(5, 3, bias=False), strength=0.0, base="sgd", lr=0.1, xi=0.1)
    start = learner.model.weight.detach().clone()
    path = torch.zeros_like(start)
    for seed in range(3):
        x, y = batch(seed=seed)
        (g,) = torch.autograd.grad(F.cross_entropy(learner.model(x), y), [learner.model.weight])
        learner.learn(x, y, None)
        path += 0.1 * g**2  # - g dw, with dw = - lr g
    learner.end_task(x, y, None)
    moved = learner.model.weight.detach() - start
    torch.testing.assert_close(learner.importance[0], path / (moved**2 + 0.1))
    before = learner.importance[0].clone()
    learner.path[0].fill_(-0.5 * before.max() * 0.1)  # a task in which every weight made the loss worse
    learner.end_task(x, y, None)
    torch.testing.assert_close(learner.importance[0], (before - 0.5 * before.max()).clamp(min=0))


def test_lwf_s_loss():
    learner, (x, y) = LwF(network(), strength=3.0, temperature=2.0, base="sgd", lr=0.1), batch()
    y[:] = y % 2  # the first task has units 0 and 1
    learner.end_task(x, y, None)
    old = learner.logits(x).detach()
    with torch.no_grad():
        learner.model[0].weight.mul_(0.5)
    new = learner.logits(x).detach()
    p, log_q = (old[:, :2] / 2).softmax(1), (new[:, :2] / 2).log_softmax(1)
    expected = F.cross_entropy(new, y) + 3 * 4 * -(p * log_q).sum(1).mean()
    torch.testing.assert_close(learner.loss(x, y, None).detach(), expected)


def test_online_owm_closes_the_mean_input_of_a_batch_before_it_projects_its_gradient():
    learner, (x, y) = OnlineOWM(nn.Linear(5, 3), alpha=0.5, lr=0.1), batch()
    inputs, means = torch.cat([x, torch.ones(12, 1)], 1), []
    for rows in (slice(0, 8), slice(8, 12)):
        means.append(inputs[rows].mean(0))
        P = torch.linalg.inv(torch.eye(6) + torch.stack(means).T @ torch.stack(means) / 0.5)
        errors = (learner.model(x[rows]).softmax(1) - F.one_hot(y[rows], 3)).detach() / len(x[rows])
        learner.learn(x[rows], y[rows], None)
        torch.testing.assert_close(learner.projectors[0], P)
        torch.testing.assert_close(gradient(learner.layers[0]), errors.T @ inputs[rows] @ P)


def test_owm_s_projector_is_that_of_least_squares():
    learner, (x, y) = OWM(nn.Linear(5, 3), alpha=0.5, batch=4, lr=0.1), batch()
    learner.end_task(x, y, None)
    means = torch.cat([x, torch.ones(12, 1)], 1).reshape(3, 4, 6).mean(1)
    P = torch.linalg.inv(torch.eye(6) + means.T @ means / 0.5)
    torch.testing.assert_close(learner.projectors[0], P)
    learner.learn(x, y, None)
    G = gradient(learner.layers[0])
    assert (G @ means.T).norm() < 0.6 * G.norm() * means.norm()  # hardly anything along the old means is left
    (raw,) = torch.autograd.grad(F.cross_entropy(learner.model(x), y), [learner.model.weight])
    assert raw.shape == G[:, :5].shape


def test_gpm_takes_the_fewest_directions_that_hold_the_share():
    X = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0]))  # shares 9, 4 and 1 of 14
    for threshold, count in ((0.6, 1), (0.7, 2), (0.9, 2), (0.95, 3)):
        M = extended(torch.zeros(4, 0), X, threshold)
        torch.testing.assert_close(M @ M.T, torch.diag((torch.arange(4) < count).float()))
    held = extended(torch.eye(4)[:, :1], X, 0.9)  # the first direction is held, the second makes 13 of 14
    torch.testing.assert_close(held @ held.T, torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0])))


def test_gpm_s_gradient_is_orthogonal_to_old_inputs():
    learner, (x, y) = GPM(nn.Linear(5, 3), threshold=0.8, lr=0.1), batch()
    learner.end_task(x, y, None)
    learner.learn(*batch(seed=1), None)
    G, M = gradient(learner.layers[0]), learner.bases[0]
    assert 0 < M.shape[1] < 6 and (G @ M).abs().max() < 1e-6 < G.abs().max()


def test_ncl_s_step_and_precision():
    learner, (x, y) = NCL(nn.Linear(5, 3), lr=0.1, prior=0.01), batch()
    W = torch.cat([learner.model.weight, learner.model.bias[:, None]], 1).detach()
    (g, b) = torch.autograd.grad(F.cross_entropy(learner.model(x), y), list(learner.model.parameters()))
    learner.learn(x, y, None)
    after = torch.cat([learner.model.weight, learner.model.bias[:, None]], 1).detach()
    # Before any task the precision is prior I, and the anchor zero: SGD with weight decay.
    torch.testing.assert_close(after, W - 0.1 * (torch.cat([g, b[:, None]], 1) + 0.01 * W))
    learner.end_task(x, y, None)
    A, S = learner.factors[0]
    G = torch.randn(3, 6)
    learner.model.weight.grad, learner.model.bias.grad = G[:, :5].clone(), G[:, 5].clone()
    learner.adjust_gradients()
    natural = 0.01 * torch.linalg.inv(S) @ G @ torch.linalg.inv(A)  # at the anchor, nothing pulls
    torch.testing.assert_close(gradient(learner.layers[0]), natural)


@pytest.mark.parametrize("rival", [OWM, GPM, NCL])
def test_a_projection_says_what_it_does_not_protect(rival):
    with pytest.raises(ValueError, match=r"also trains 1.bias, 1.weight: freeze them"):
        rival(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)))
    rival(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3).requires_grad_(False)))


def test_the_precision_of_a_convolution_sums_inputs_and_averages_errors_over_positions(monkeypatch):
    found = []
    monkeypatch.setattr(projections, "kronecker_sum", lambda old, new: found.append(new) or old)
    learner, x = NCL(nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 3))), torch.ones(6, 1, 3, 3)
    errors = []
    monkeypatch.setattr(learner, "recorded", lambda *data: errors.append(NCL.recorded(learner, *data)) or errors[0])
    learner.end_task(x, torch.zeros(6, dtype=torch.int64), None)
    (A, S), (_, D) = found[0], errors[0][0]
    assert D.shape == (6 * 4, 2)
    torch.testing.assert_close(A, torch.full((5, 5), 4.0))
    torch.testing.assert_close(S, D.T @ D / 24)


def test_kronecker_sum_is_balanced_and_never_too_small():
    generator = torch.Generator().manual_seed(0)
    A, S, B, T = (m @ m.T for m in torch.randn(4, 3, 3, generator=generator, dtype=torch.float64))
    R, L = kronecker_sum((A, S), (4 * A, 9 * S))
    torch.testing.assert_close(torch.kron(L, R), (1 + 6) ** 2 * torch.kron(S, A))
    R, L = kronecker_sum((A, S), (B, T))
    rest = torch.kron(L, R) - torch.kron(S, A) - torch.kron(T, B)
    assert torch.linalg.eigvalsh(rest).min() > -1e-9
    assert kronecker_sum((A, S), (0 * B, T))[0] is A


def test_agem_s_projection():
    learner = AGEM(network(), store(size=12), lr=0.1)
    old, (x, y) = batch(seed=1), batch()
    learner.store.buffer.add(*old)
    signs = set()
    for labels in (learner.logits(x).argmax(1), 2 - y, y, 0 * y, 0 * y + 1, 0 * y + 2):
        learner.optimizer.zero_grad()
        learner.loss(x, labels, None).backward()
        g = torch.cat([p.grad.flatten() for p in learner.parameters])
        reference = torch.autograd.grad(F.cross_entropy(learner.model(old[0]), old[1]), learner.parameters)
        r = torch.cat([part.flatten() for part in reference])
        expected = g - min(0, float(g @ r)) / float(r @ r) * r
        signs.add(float(g @ r) < 0)
        learner.adjust_gradients()
        torch.testing.assert_close(torch.cat([p.grad.flatten() for p in learner.parameters]), expected)
    assert signs == {True, False}


def test_agem_stores_a_task_when_it_ends():
    learner = AGEM(network(), store(size=12), lr=0.1)
    x, y = batch()
    learner.learn(x, y, None)
    assert len(learner.store.buffer) == 0
    learner.end_task(x, y, None)
    assert len(learner.store.buffer) == len(x)


def test_derpp_s_loss_and_what_it_stores():
    learner = DERpp(network(), store(size=12), alpha=0.3, beta=0.7, lr=0.0)
    old, (x, y) = batch(seed=1), batch()
    then = learner.logits(old[0]).detach()
    learner.learn(*old, None)
    with torch.no_grad():
        learner.model[0].weight.mul_(0.5)
    now = learner.logits(old[0]).detach()
    expected = (
        F.cross_entropy(learner.logits(x), y) + 0.3 * ((now - then) ** 2).mean() + 0.7 * F.cross_entropy(now, old[1])
    )
    torch.testing.assert_close(learner.loss(x, y, None), expected)


def test_er_ace_s_loss():
    learner = ERACE(network(), store(size=12), lr=0.0)
    (old_x, old_y), (x, y) = batch(seed=1), batch()
    old_y, y = 0 * old_y, 0 * y + 1
    learner.learn(old_x, old_y, None)  # class 0; then class 1 comes, and class 2 is never met
    new, old = learner.logits(x).detach(), learner.logits(old_x).detach()
    expected = F.cross_entropy(new[:, 1:2], y - 1) + F.cross_entropy(old[:, :2], old_y)
    torch.testing.assert_close(learner.loss(x, y, None).detach(), expected)


def test_joint_training_begins_anew_with_all_that_was_seen():
    model = network()
    start = copy.deepcopy(model.state_dict())
    learner, tasks = JointLearner(model, base="sgd", lr=0.1), [batch(seed=1), batch(seed=2)]
    for x, y in tasks:
        for rows in torch.arange(12).split(4):
            learner.learn(x[rows], y[rows], None)
        torch.manual_seed(5)
        learner.end_task(x, y, None)
    model_by_hand = network(seed=9)
    model_by_hand.load_state_dict(start)
    optimizer = torch.optim.SGD(model_by_hand.parameters(), lr=0.1)
    x, y = (torch.cat(parts) for parts in zip(*tasks, strict=True))
    torch.manual_seed(5)
    for rows in torch.randperm(24).split(4):
        optimizer.zero_grad()
        F.cross_entropy(model_by_hand(x[rows]), y[rows]).backward()
        optimizer.step()
    for a, b in zip(model.parameters(), model_by_hand.parameters(), strict=True):
        assert torch.equal(a, b)


def test_chance_learns_nothing():
    torch.manual_seed(0)
    learner, (x, _) = ChanceLearner(4), batch(4000)
    learner.learn(x, torch.zeros(4000, dtype=torch.int64), None)
    counts = learner.logits(x).argmax(1).bincount()
    assert ((counts / 4000 - 0.25).abs() < 0.03).all()


def test_experience_replay_mixes_stored_examples_into_each_batch(monkeypatch):
    seen = []
    monkeypatch.setattr(GradientLearner, "learn", lambda self, x, y, allowed: seen.append(y.clone()))
    run(Experiment(tasks=5, replay_capacity=60, replay_batch=8))
    sizes = [len(y) for y in seen]
    assert sizes[:3] == [32, 40, 40]  # nothing is stored before the first step
    old = torch.cat([y[-8:] for y in seen[-9:]])
    assert (old < 8).float().mean() > 0.5  # while the last task has new examples of classes 8 and 9 only


def test_lwf_s_old_network_answers_for_all_classes_so_far_and_without_dropout():
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3))
    learner, (x, y) = LwF(model), batch()
    learner.end_task(x, y % 2, None)
    learner.end_task(x, 0 * y + 2, None)
    assert [units.tolist() for units in learner.groups] == [[True, True, True]]
    assert torch.equal(learner.teacher(x), learner.teacher(x)) and model.training


def test_lwf_averages_over_tasks_with_units_of_their_own():
    learner, (x, y) = LwF(network(outputs=4), strength=3.0, temperature=1.0), batch()
    first = torch.tensor([True, True, False, False]).expand(12, 4)
    learner.end_task(x, y % 2, first)
    learner.end_task(x, 2 + y % 2, ~first)
    old = learner.logits(x).detach()
    with torch.no_grad():
        learner.model[0].weight.mul_(0.5)
    new = learner.logits(x).detach()
    each = [F.cross_entropy(new[:, units], old[:, units].softmax(1)) for units in (slice(0, 2), slice(2, 4))]
    expected = F.cross_entropy(new[:, :2], y % 2) + 3 * sum(each) / 2
    torch.testing.assert_close(learner.loss(x, y % 2, first).detach(), expected)


@pytest.mark.parametrize("rival", [DERpp, ERACE, AGEM])
def test_of_stored_examples_the_units_of_their_own_task_count(rival):
    task = torch.tensor([0, 0, 1, 1])

    def allowed(y):
        return task == task[y, None]

    options = {"alpha": 0.0, "beta": 1.0} if rival is DERpp else {}
    learner = rival(network(outputs=4), ReplaySource(ReplayBuffer(50), 12, allowed), lr=0.0, **options)
    (old_x, old_y), (x, y) = batch(seed=1), batch()
    old_y, y = old_y % 2, 2 + y % 2
    learner.learn(old_x, old_y, allowed(old_y))
    new, old = learner.model(x), learner.model(old_x)
    remembered = F.cross_entropy(old[:, :2], old_y)
    if rival is not AGEM:
        expected = F.cross_entropy(new[:, 2:], y - 2) + remembered
        torch.testing.assert_close(learner.loss(x, y, allowed(y)), expected)
        return
    learner.end_task(old_x, old_y, allowed(old_y))
    r = torch.cat([g.flatten() for g in torch.autograd.grad(remembered, learner.parameters)])
    learner.optimizer.zero_grad()
    learner.loss(old_x, 1 - old_y, allowed(old_y)).backward()  # the opposite of what is stored
    g = torch.cat([p.grad.flatten() for p in learner.parameters])
    learner.adjust_gradients()
    assert g @ r < 0
    expected = g - (g @ r) / (r @ r) * r
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in learner.parameters]), expected)
