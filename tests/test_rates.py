"""Error rates: what the null is fitted to, and what p- and q-values promise."""

import numpy as np
import pytest

from find.duplicates import find_copies, repeated
from find.foreign import NEAREST, class_distances, log_distance, nearest, unit
from find.rates import bayes_q_values, conformal_p_values, find_caveat, local_rates, p_values, q_values, standardise


def test_foreign_scores_do_not_move_the_null():
    scores = np.random.default_rng(0).normal(3, 2, 1000)
    np.testing.assert_allclose(standardise(scores), (scores - 3) / 2, atol=0.25)
    mixed = np.concatenate([scores, np.full(200, 50.0)])
    np.testing.assert_allclose(standardise(mixed)[:1000], (scores - 3) / 2, atol=0.8)
    assert not standardise(np.ones(9)).any()


@pytest.mark.parametrize("n", [20, 100, 1000])
@pytest.mark.parametrize("freedom", [15, 1e9])
def test_p_values_hold_where_all_belong_with_a_long_tail_or_a_normal_one(n, freedom):
    generator = np.random.default_rng(n)
    p = np.concatenate([p_values(generator.standard_t(freedom, n)) for _ in range(40_000 // n)])
    for level, least in ((0.001, 0.05), (0.01, 0.3), (0.1, 0.7)):
        assert least * level < (p < level).mean() < 1.35 * level


def test_a_clean_set_is_flagged_in_half_the_rate_and_a_mixed_one_keeps_it():
    generator = np.random.default_rng(0)
    clean = [(q_values(generator.random(50)) <= 0.1).any() for _ in range(2000)]
    assert np.mean(clean) == pytest.approx(0.05, abs=0.015)
    false = []
    for _ in range(200):
        flagged = q_values(np.concatenate([generator.random(300), generator.random(40) / 1e5])) <= 0.1
        assert flagged[300:].all()
        false.append(flagged[:300].sum() / flagged.sum())
    assert 0.06 < np.mean(false) < 0.12


def test_conformal_p_values_count_what_is_as_high_and_of_probabilities_the_mean_is_the_rate():
    assert conformal_p_values(np.array([3.0, 2.0, 0.0]), np.array([1.0, 2.0, 3.0])).tolist() == [0.5, 0.75, 1.0]
    beyond = conformal_p_values(np.array([4.0, 6.0]), np.random.default_rng(0).exponential(size=400))
    assert beyond[1] < beyond[0] < 0.02
    assert bayes_q_values(np.array([0.5, 1.0])).tolist() == [0.25, 0.0]


def test_local_rates_are_what_is_true_of_images_that_look_so():
    generator = np.random.default_rng(0)
    p = np.concatenate([generator.random(9000), generator.beta(0.2, 5, 1000)])
    odd, local = np.arange(10_000) >= 9000, local_rates(p)
    assert (np.diff(local[np.argsort(p)]) >= 0).all()
    for low, high in ((0, 0.1), (0.3, 0.7)):
        chosen = (local >= low) & (local <= high)
        assert 1 - odd[chosen].mean() == pytest.approx(local[chosen].mean(), abs=0.12)


def test_nearest_images_are_those_of_all_pairs(monkeypatch):
    monkeypatch.setattr("find.foreign.BLOCK", (7, 11))
    x = unit(np.random.default_rng(0).normal(size=(40, 6)))
    cosine = x @ x.T - 9 * np.eye(40)
    rows, cosines = nearest(x, x, 3, itself=np.arange(40))
    np.testing.assert_array_equal(rows, np.argsort(-cosine, 1)[:, :3])
    np.testing.assert_allclose(cosines, np.take_along_axis(cosine, rows, 1), rtol=1e-5)
    d = 1 - np.sort(cosine, 1)[:, -NEAREST:].mean(1)
    inside = d < 0.9
    np.testing.assert_allclose(log_distance(x)[inside], np.log(d / (1 - d))[inside], rtol=1e-4)
    assert (np.argsort(log_distance(x)) == np.argsort(d)).all()


def test_what_fits_its_likely_class_is_not_far():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 50)
    x = 3 * generator.normal(size=(2, 64))[labels] + generator.normal(size=(100, 64))
    given = labels.copy()
    given[0] = 1
    far, near = (standardise(class_distances(x, np.arange(100), given, likely))[0] for likely in (given, 1 - given))
    assert far > 4
    assert near < 2


def test_copies_are_found_by_digest_by_features_and_nearly():
    x = np.random.default_rng(0).normal(size=(12, 400)).astype(np.float32)
    x[3], x[5] = x[1], x[4] + 0.01
    digests = np.arange(12)[:, None] + np.zeros((12, 32), np.uint8)
    digests[7] = digests[6]
    copies = find_copies(x, digests)
    assert sorted(part.tolist() for part in repeated(copies.group).values()) == [[1, 3], [4, 5], [6, 7]]
    assert (copies.equal[1], copies.equal[6]) == (copies.equal[3], copies.equal[7])
    assert copies.equal[4] != copies.equal[5]


def test_a_rate_is_not_promised_where_there_is_no_gap_or_there_are_few_images():
    usual = np.random.default_rng(0).normal(size=500)
    with_gap = p_values(np.concatenate([usual, np.full(10, 9.0)]))
    without = np.concatenate([np.linspace(0.001, 1, 500), np.full(10, 1e-6), np.linspace(0.003, 0.01, 20)])
    assert find_caveat(with_gap, 0.1) is None
    assert "no gap" in find_caveat(without, 0.1)
    assert find_caveat(p_values(usual), 0.001) is None  # nothing is flagged
    assert "too few" in find_caveat(p_values(np.concatenate([usual[:30], [99.0]])), 0.1)
