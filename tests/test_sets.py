import numpy as np
import pytest
from fabricate import refuses
from hypothesis import given, settings
from hypothesis import strategies as st

from train.sets import (
    ClassIndex,
    Sampling,
    draw_batches,
    draw_distinct,
    draw_evaluation_sets,
    pair_mostly_within,
    pair_within,
    sample_mixed_sets,
    sample_sets,
    split_validation,
)


def index_of(counts, first_row=100):
    labels = np.repeat(np.arange(len(counts)) * 3, counts)  # labels need not be consecutive
    rows = first_row + np.random.default_rng(0).permutation(len(labels))
    return ClassIndex.build(rows, labels), dict(zip(rows.tolist(), labels.tolist(), strict=True))


def draw(index, seed=0, **sampling):
    """The batches of an epoch, and their number is known before."""
    batches = list(draw_batches(index, Sampling(**sampling), np.random.default_rng(seed)))
    assert len(batches) == Sampling(**sampling).count_steps(len(index.rows))
    return batches


def assert_valid(sets, labels, set_size):
    """Each set, whose items have these labels, has its anomaly where it says, of the class it says; no image twice."""
    is_anomaly = np.arange(set_size) == sets.target[:, None]
    assert (labels[is_anomaly] == sets.anomaly_label[sets.target < set_size]).all()
    assert ((labels == sets.set_label[:, None]) != is_anomaly).all()
    assert all(len(set(row)) == set_size for row in sets.rows.tolist())


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(9, 30), min_size=2, max_size=6),
    set_size=st.integers(3, 10),
    seed=st.integers(0, 2**32),
)
def test_a_set_has_one_anomaly_of_another_class_and_distinct_images(counts, set_size, seed):
    index, label_of = index_of(counts)
    (sets,) = draw(index, seed, set_size=set_size, batch_size=len(index.rows))
    assert sets.target.max() < set_size
    assert_valid(sets, np.vectorize(label_of.get)(sets.rows), set_size)


def test_position_set_class_and_inliers_are_uniform():
    index, _ = index_of([20, 20, 20, 20])
    sets = sample_sets(index, np.zeros(40_000, np.int64), 10, np.random.default_rng(2))
    assert_uniform(np.bincount(sets.target, minlength=10))
    assert_uniform(np.unique(sets.set_label, return_counts=True)[1])
    for position in (0, 9):
        assert_uniform(np.unique(sets.rows[sets.target != position, position], return_counts=True)[1])


def test_draw_distinct_gives_every_ordered_choice_equally_often():
    code = draw_distinct(np.random.default_rng(3), np.full(48_000, 4), 3) @ [16, 4, 1]
    counts = np.unique(code, return_counts=True)[1]
    assert len(counts) == 24
    assert_uniform(counts)


@settings(deadline=None)
@given(count=st.integers(1, 12), data=st.data())
def test_draw_distinct_never_repeats_nor_leaves_the_range(count, data):
    k = data.draw(st.integers(1, count))
    drawn = draw_distinct(np.random.default_rng(data.draw(st.integers(0, 1000))), np.full(20, count), k)
    assert drawn.shape == (20, k)
    assert drawn.min() >= 0
    assert drawn.max() < count
    assert all(len(set(row)) == k for row in drawn.tolist())


def test_the_same_seed_gives_the_same_sets_and_digest_and_another_does_not():
    index, _ = index_of([12, 20, 15])
    first, again, other = (draw_evaluation_sets(index, 10, seed) for seed in (1, 1, 2))
    assert first.digest() == again.digest() != other.digest()
    assert (first.rows == again.rows).all()
    assert sorted(first.rows[np.arange(len(first)), first.target]) == sorted(index.rows)


def test_an_epoch_in_batches_has_every_image_once_as_the_anomaly(monkeypatch):
    index, _ = index_of([30, 20, 25])
    monkeypatch.setattr("train.sets.SAMPLED_AT_ONCE", 32)
    batches = draw(index, set_size=10, batch_size=8)
    assert [len(batch) for batch in batches] == [8] * 9 + [3]
    anomalies = [row for batch in batches for row in batch.rows[np.arange(len(batch)), batch.target]]
    assert sorted(anomalies) == sorted(index.rows)


def test_validation_takes_its_part_of_each_class_or_enough_for_a_set_and_nothing_twice():
    rows, labels = np.arange(1000), np.repeat([0, 1], [600, 400])
    train, val = split_validation(rows, labels, 0.1, 10, seed=0)
    assert np.bincount(labels[val]).tolist() == [60, 40]
    assert sorted([*train, *val]) == rows.tolist()
    assert (split_validation(rows, labels, 0.1, 10, seed=0)[1] == val).all()
    assert (split_validation(rows, labels, 0.1, 10, seed=1)[1] != val).any()
    rows, labels = np.arange(60), np.repeat([0, 1], 30)
    _, val = split_validation(rows, labels, 0.1, 10, seed=0)
    assert np.bincount(labels[val]).tolist() == [9, 9]


PAIRS = np.array([[0, 0.75, 0, 0.25], [0, 0, 1, 0], [0, 0, 0, 0], [0.5, 0.5, 0, 0]])


def test_pairs_of_classes_occur_as_often_as_they_should_and_no_others():
    index, _ = index_of([12, 9, 20, 11])
    drawn = np.repeat([0, 1, 3], 20_000)
    sets = sample_sets(index, index.starts[drawn], 10, np.random.default_rng(5), PAIRS)
    counts = np.zeros((4, 4))
    np.add.at(counts, (drawn, np.searchsorted(index.classes, sets.set_label)), 1)
    np.testing.assert_array_equal(counts > 0, PAIRS > 0)
    np.testing.assert_allclose(counts / 20_000, PAIRS, atol=0.02)


def test_a_set_of_a_pair_is_a_set_like_others():
    index, label_of = index_of([12, 9, 20, 11])
    (sets,) = draw(index, set_size=10, batch_size=1000, pairs=pair_within(np.array([0, 1, 0, 1])))
    assert_valid(sets, np.vectorize(label_of.get)(sets.rows), 10)
    assert sorted(sets.rows[np.arange(len(sets)), sets.target]) == sorted(index.rows)


@settings(deadline=None)
@given(groups=st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_pairs_within_are_the_other_classes_of_a_group_equally_often(groups):
    pairs = pair_within(np.array(groups))
    for first, row in enumerate(pairs):
        partners = [second for second, group in enumerate(groups) if group == groups[first] and second != first]
        expected = np.zeros(len(groups))
        expected[partners] = 1 / max(1, len(partners))
        np.testing.assert_allclose(row, expected)


@settings(deadline=None)
@given(groups=st.lists(st.integers(0, 3), min_size=2, max_size=8), part=st.floats(0, 0.99))
def test_pairs_mostly_within_are_of_a_group_for_a_part_and_of_any_two_classes_for_the_rest(groups, part):
    pairs = pair_mostly_within(np.array(groups), part)
    np.testing.assert_allclose(pairs.sum(1), 1)
    assert (pairs.diagonal() == 0).all()
    for first, row in enumerate(pairs):
        partners = [second for second, group in enumerate(groups) if group == groups[first] and second != first]
        strangers = [second for second, group in enumerate(groups) if group != groups[first]]
        share = part if partners else 0
        np.testing.assert_allclose(row[partners], (1 - share) / (len(groups) - 1) + share / max(1, len(partners)))
        np.testing.assert_allclose(row[strangers], (1 - share) / (len(groups) - 1))


def test_evaluation_sets_of_pairs_leave_out_classes_without_a_partner():
    index, label_of = index_of([10, 12, 14, 9])
    sets = draw_evaluation_sets(index, 10, 3, pair_within(np.array([0, 1, 0, 2])))
    anomalies = sets.rows[np.arange(len(sets)), sets.target]
    assert sorted(anomalies) == sorted(row for row, label in label_of.items() if label in (0, 6))
    assert set(zip(sets.set_label.tolist(), sets.anomaly_label.tolist(), strict=True)) == {(0, 6), (6, 0)}


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(10, 30), min_size=4, max_size=7),
    anomalies=st.integers(0, 3),
    set_size=st.integers(4, 10),
    seed=st.integers(0, 2**32),
)
def test_a_mixed_set_has_its_anomalies_each_of_another_class(counts, anomalies, set_size, seed):
    index, label_of = index_of(counts)
    rows, is_anomaly = sample_mixed_sets(index, 40, anomalies, set_size, np.random.default_rng(seed))
    assert rows.shape == is_anomaly.shape == (40, set_size)
    assert (is_anomaly.sum(1) == anomalies).all()
    for number, (row, odd) in enumerate(zip(rows, is_anomaly, strict=True)):
        assert len(set(row)) == set_size
        same, others = ([label_of[item] for item in row[chosen]] for chosen in (~odd, odd))
        assert set(same) == {index.classes[number % len(counts)]}
        assert len({*same, *others}) == 1 + anomalies


def test_positions_classes_and_images_of_mixed_sets_are_uniform():
    index, _ = index_of([10, 10, 10, 10, 10])
    rows, is_anomaly = sample_mixed_sets(index, 30_000, 2, 10, np.random.default_rng(6))
    assert_uniform(is_anomaly.sum(0))
    of_the_first = is_anomaly[::5]
    assert_uniform(np.unique(rows[::5][of_the_first], return_counts=True)[1])
    assert_uniform(np.unique(rows[::5][~of_the_first], return_counts=True)[1])


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(30, 80), min_size=4, max_size=8),
    images_per_class=st.integers(10, 25),
    seed=st.integers(0, 2**32),
)
def test_batches_that_share_images_have_each_once_as_the_anomaly_and_no_others(counts, images_per_class, seed):
    index, label_of = index_of(counts)
    batches = draw(index, seed, set_size=6, batch_size=120, images_per_class=images_per_class)
    assert len(batches) == max(1, round(sum(counts) / 120))
    anomalies = [batch.rows[np.arange(len(batch)), batch.target] for batch in batches]
    assert sorted(np.concatenate(anomalies)) == sorted(index.rows)
    for batch, own in zip(batches, anomalies, strict=True):
        assert set(batch.rows.ravel().tolist()) == set(own.tolist())
        assert_valid(batch, np.vectorize(label_of.get)(batch.rows), 6)


def assert_uniform(counts):
    """Pearson's chi-square stays below its 1 - 1e-6 quantile (normal approximation; the seed is fixed)."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 4.75 * np.sqrt(2 * freedom) + 10


def test_too_few_images_or_classes_are_refused():
    rng = np.random.default_rng(0)
    refuses("at least 2 classes", ClassIndex.build, np.arange(10), np.zeros(10, np.int64))
    index, _ = index_of([12, 8])
    refuses("class 3 has 8 images", draw_evaluation_sets, index, 10, 0)
    rows, labels = np.arange(23), np.repeat([0, 1, 2], [10, 3, 10])
    index = ClassIndex.build(rows, labels, ["a", "tench, Tinca tinca", "c"])
    refuses(r'class "tench, Tinca tinca" has 3 images, sets of this size need 5', draw_evaluation_sets, index, 6, 0)
    refuses("class 1 has 3 images in the train split, sets", split_validation, rows, labels, 0.1, 6, 0)
    refuses('class "b" has 3 images in the train split', split_validation, rows, labels, 0.1, 6, 0, ["a", "b", "c"])
    index, _ = index_of([12, 9, 12])
    refuses("sets with 3 anomalies need more than 3 classes, got 3", sample_mixed_sets, index, 5, 3, 10, rng)
    refuses("class 3 has 9 images, sets of this size need 10", sample_mixed_sets, index, 5, 0, 10, rng)
    assert sample_mixed_sets(index, 5, 1, 10, rng)[0].shape == (5, 10)
    with pytest.raises(ValueError, match="cannot draw 3"):
        draw_distinct(rng, np.array([5, 2]), 3)


def test_a_part_of_the_sets_is_without_an_anomaly():
    labels = np.repeat([3, 5, 8], 40)
    index = ClassIndex.build(np.arange(120), labels)
    sets = sample_sets(index, np.arange(120).repeat(20), 6, np.random.default_rng(0), without=0.25)
    assert 0.22 < (sets.target == 6).mean() < 0.28
    assert_valid(sets, labels[sets.rows], 6)


def test_a_class_without_an_image_to_spare_keeps_its_anomalies():
    index = ClassIndex.build(np.arange(11), np.repeat([0, 1], [5, 6]))
    sets = sample_sets(index, np.arange(11).repeat(50), 6, np.random.default_rng(0), without=0.5)
    clean = sets.target == 6
    assert set(sets.set_label[clean]) == {1}
    assert 0.4 < clean[sets.set_label == 1].mean() < 0.6


def test_groups_grow_with_the_sets_and_a_batch_of_one_class_is_refused():
    index = ClassIndex.build(np.arange(90), np.repeat([0, 1, 2], 30))
    assert [len(sets) for sets in draw(index, set_size=16, batch_size=90, images_per_class=5)] == [90]
    advice = r"raise training\.batch_size \(30\) or lower training\.images_per_class \(20\)"
    refuses(advice, draw, index, set_size=6, batch_size=30, images_per_class=20)
