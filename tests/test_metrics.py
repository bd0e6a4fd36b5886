import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.intervals import wilson_interval
from train.metrics import evaluate_scores, top_k

TARGET = np.array([0, 3, 2, 1])


def scores_where(anomaly, inlier):
    return np.where(np.arange(4) == TARGET[:, None], anomaly, inlier).astype(float)


def test_separable_scores_are_perfect():
    metrics = evaluate_scores(scores_where(50.0, 0.0), TARGET)
    assert metrics["top1"] == metrics["top5"] == metrics["auroc"] == metrics["average_precision"] == 1
    assert (metrics["loss"], metrics["n"]) == (pytest.approx(0, abs=1e-12), 4)


def test_inverted_scores_are_as_bad_as_can_be():
    scores = scores_where(0.0, 50.0)
    assert top_k(scores, TARGET, 3).mean() == 0
    metrics = evaluate_scores(scores, TARGET)
    assert metrics["top1"] == metrics["auroc"] == 0
    assert metrics["average_precision"] == 0.25  # all items come with the last anomaly


def test_tied_scores_are_chance_wherever_the_anomaly_is():
    scores = np.zeros((4, 4))
    assert top_k(scores, TARGET, 1).tolist() == [0.25] * 4
    assert top_k(scores, TARGET, 3).tolist() == [0.75] * 4
    metrics = evaluate_scores(scores, TARGET)
    assert (metrics["auroc"], metrics["average_precision"]) == (0.5, 0.25)
    assert metrics["loss"] == pytest.approx(np.log(4))
    assert top_k(np.array([[1.0, 1.0, 0.0]]), np.array([0]), 1).tolist() == [0.5]


def test_shapes_are_checked_and_without_inliers_there_is_no_auroc():
    metrics = evaluate_scores(np.array([[0.3], [-1.0]]), np.array([0, 0]))
    assert metrics["auroc"] is None
    assert metrics["top1"] == metrics["average_precision"] == 1
    with pytest.raises(ValueError, match="target must be"):
        top_k(np.zeros((4, 4)), np.zeros(3, int), 1)


def test_a_common_shift_of_a_set_changes_nothing():
    generator = np.random.default_rng(0)
    scores, target = generator.normal(size=(50, 10)), generator.integers(10, size=50)
    shifted = evaluate_scores(scores + generator.normal(size=(50, 1)), target)
    for name, value in evaluate_scores(scores, target).items():
        assert shifted[name] == pytest.approx(value)


def test_wilson_interval_has_its_published_value():
    # Newcombe 1998, Statistics in Medicine 17, table I: 81 of 263
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@given(st.integers(1, 1000), st.floats(0, 1))
def test_the_interval_holds_the_rate_and_stays_a_proportion(n, rate):
    low, high = wilson_interval(rate * n, n)
    assert 0 <= low <= rate + 1e-12
    assert rate - 1e-12 <= high <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        evaluate_scores(np.array([[bad, 0.0]]), np.array([0]))
