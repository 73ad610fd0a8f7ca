"""Methods that solve for their readout solve the right equations, whatever the order and the batches."""

import copy

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from sp.rivals.closed_form import RanPACLearner, RidgeLearner, SLDALearner
from tests.rivals.test_baselines import batch


def test_ridge_is_a_regularised_regression_whatever_the_order():
    (x, y), device = batch(30), torch.device("cpu")
    torch.manual_seed(0)
    learner = RidgeLearner(5, 8, 3, device, penalty=0.01)
    other = copy.deepcopy(learner)
    learner.learn(x, y, None)
    for rows in torch.randperm(30).split(7):
        other.learn(x[rows], y[rows], None)
    Z = learner._features(x).double().numpy()
    penalty = 0.01 * np.mean(np.sum(Z**2, 0))
    W = np.linalg.solve(Z.T @ Z + penalty * np.eye(9), Z.T @ np.eye(3)[y])
    np.testing.assert_allclose(learner.logits(x).numpy(), Z @ W, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(other.logits(x), learner.logits(x), rtol=1e-3, atol=1e-4)


def test_ranpac_takes_the_penalty_that_is_best_on_a_fifth_of_the_examples():
    (x, y), device = batch(60), torch.device("cpu")
    torch.manual_seed(0)
    learner = RanPACLearner(5, 40, 3, device)
    for rows in torch.arange(60).split(7):
        learner.learn(x[rows], y[rows], None)
    H, Y = torch.relu(x @ learner.projection).double().numpy(), np.eye(3)[y]
    held_out = np.arange(60) % 5 == 4

    def solution(rows, penalty):
        return np.linalg.solve(H[rows].T @ H[rows] + penalty * np.eye(40), H[rows].T @ Y[rows])

    penalties = 10.0 ** np.arange(-8, 9)
    errors = [np.square(H[held_out] @ solution(~held_out, one) - Y[held_out]).sum() for one in penalties]
    best = penalties[np.argmin(errors)]
    np.testing.assert_allclose(learner.logits(x).numpy(), H @ solution(slice(None), best), rtol=1e-3, atol=1e-4)
    assert learner.penalty == pytest.approx(best) and best not in penalties[[0, -1]]


def test_ranpac_of_too_few_examples_for_a_small_penalty_takes_a_larger_one():
    learner = RanPACLearner(5, 40, 3, torch.device("cpu"))
    x, y = batch(6)
    learner.learn(x, y, None)
    assert learner.logits(x).isfinite().all()


@pytest.mark.parametrize("method", [lambda device: RanPACLearner(5, 40, 3, device), lambda d: SLDALearner(5, 3, d)])
def test_a_closed_form_does_not_depend_on_the_batches(method):
    x, y = batch(60)
    one = method(torch.device("cpu"))
    other = copy.deepcopy(one)
    one.learn(x, y, None)
    for rows in torch.arange(60).split(7):
        other.learn(x[rows], y[rows], None)
        other.logits(x)
    torch.testing.assert_close(other.logits(x), one.logits(x), rtol=1e-3, atol=1e-4)


def test_slda_is_a_discriminant_analysis_with_equal_priors_whatever_the_order():
    x, y = batch(200)
    x = x + y[:, None]
    learner = SLDALearner(5, 3, torch.device("cpu"), shrinkage=0.01)
    for rows in y.argsort().split(30):  # class after class
        learner.learn(x[rows], y[rows], None)
    reference = LinearDiscriminantAnalysis(
        solver="lsqr", priors=[1 / 3] * 3, covariance_estimator=_Covariance(x.numpy(), y.numpy(), 0.01)
    ).fit(x, y)
    np.testing.assert_allclose(
        learner.logits(x).log_softmax(1).exp().numpy(), reference.predict_proba(x), rtol=1e-3, atol=1e-5
    )


class _Covariance:
    """Shrunk covariance of all classes around their means; scikit-learn asks for that of each class."""

    def __init__(self, x, y, shrinkage):
        residuals = x - np.stack([x[y == label].mean(0) for label in range(3)])[y]
        self.matrix = (1 - shrinkage) * residuals.T @ residuals / len(x) + shrinkage * np.eye(5)

    def fit(self, _):
        self.covariance_ = self.matrix
        return self


def test_slda_comes_near_the_updates_that_the_authors_make_after_each_example():
    x, y = batch(2000)
    x = x + y[:, None]
    learner = SLDALearner(5, 3, torch.device("cpu"))
    learner.learn(x, y, None)
    means, counts, covariance = np.zeros((3, 5)), np.zeros(3), np.zeros((5, 5))
    for t, (z, label) in enumerate(zip(x.double().numpy(), y.numpy(), strict=True)):
        difference = z - means[label]
        covariance = (t * covariance + t / (t + 1) * np.outer(difference, difference)) / (t + 1)
        means[label] += difference / (counts[label] + 1)
        counts[label] += 1
    W = np.linalg.solve((1 - 1e-4) * covariance + 1e-4 * np.eye(5), means.T)
    np.testing.assert_allclose(learner.logits(x).numpy(), x.numpy() @ W - (W * means.T).sum(0) / 2, 0.03, 0.05)


def test_slda_never_answers_a_class_that_it_has_not_met():
    x, y = batch(40)
    learner = SLDALearner(5, 3, torch.device("cpu"))
    assert not learner.logits(x).any()
    learner.learn(x[y != 1], y[y != 1], None)
    assert set(learner.logits(x).argmax(1).tolist()) == {0, 2}
    with pytest.raises(ValueError, match="shrinkage must be a finite number in"):
        SLDALearner(5, 3, torch.device("cpu"), shrinkage=1)
