import hashlib
import io
import itertools

import numpy as np
import pytest
import torch
from fabricate import make_config
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cosine, euclidean
from scipy.stats import kstest, multivariate_normal
from sklearn.covariance import LedoitWolf
from torch.nn.functional import cross_entropy, normalize

from common.synthetic import make_store
from train.config import Config
from train.gaussian import Normaliser, diagonalise, fit_two_covariances
from train.loop import evaluate
from train.methods import METHODS, depends_on_seed, list_parameters, load_method_class
from train.methods.base import Standardise, build_method
from train.methods.knn import NearestNeighbours
from train.methods.random import Random
from train.task import Inputs, prepare

TINY = ["head.width=16", "head.layers=2", "head.heads=2", "head.feed_forward=16", "head.hidden=32", "head.inducing=3"]
DIM, CLASSES = 12, 7
ONE_SIZE = ("dummy", "mlp")  # they have weights of each position
# SHA-256 of what the explicit generators of format version 1 gave for seed 7: a seed keeps its initial weights
INITIAL = {
    "dummy": "c92a067e0435d806",
    "mlp": "bf84345e34bdf0dd",
    "shared_mlp": "21db25f54b4f007c",
    "deepsets": "1df2c0272a775355",
    "set_transformer": "69819784d3b152ba",
    "deep_plda": "16b619ab99022b73",
    "posterior": "c93f53695f632519",
    "transformer": "75968c589177650d",
    "posterior_transformer": "abf4979b10eca944",
}
LEARNED = list(INITIAL)
EQUIVARIANT = [name for name in METHODS if name not in ("random", *ONE_SIZE)]
CLOSED_FORM = {
    **{
        f"centroid {metric}, {others}, {scale}": [
            *("method=centroid", f"distance.metric={metric}"),
            *(f"distance.leave_one_out={others}", f"distance.standardise={scale}"),
        ]
        for metric, others, scale in itertools.product(("l2", "cosine"), ("true", "false"), ("true", "false"))
    },
    "knn l2": ["method=knn", "distance.metric=l2"],
    "knn cosine": ["method=knn", "distance.standardise=true"],
    "knn of all": ["method=knn", "distance.neighbours=9"],
    "mahalanobis l2": ["method=mahalanobis", "distance.metric=l2"],
    "mahalanobis cosine": ["method=mahalanobis"],
    "plda": ["method=plda"],
    "normalised_plda": ["method=normalised_plda"],
    "normalised_plda for new classes": ["method=normalised_plda", "distance.between_shrinkage=0.3"],
}


def build(name, *overrides):
    return build_method(make_config(*TINY, f"method={name}", *overrides), DIM, CLASSES)


def some(batch=3, size=10, seed=1, dim=DIM):
    return torch.randn(batch, size, dim, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Classes whose features vary little around their centres, but on other scales and around another point than 0."""
    store = make_store(tmp_path_factory.mktemp("store") / "s.h5", classes=30, train=40, test=12, feature_dim=DIM)
    store.features[...] = (store.features + 1) * np.linspace(0.5, 1.5, DIM)
    return prepare(store, Config().data)


@pytest.fixture(scope="module")
def fitted(task):
    found = {}
    for name in METHODS:
        found[name] = build(name)
        found[name].fit(task)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_made_of_what_the_config_and_the_task_have(name):
    settings = getattr(Config(), load_method_class(name).settings).__struct_fields__
    known = {"input_dim", "classes", "set_size", "seed", *settings}
    assert set(list_parameters(name)) <= known
    assert depends_on_seed(name) == (name not in ("centroid", "knn", "mahalanobis", "plda", "normalised_plda"))
    assert build(name).learns == (name in LEARNED)


@pytest.mark.parametrize("name", LEARNED)
def test_initial_weights_come_from_the_seed_alone_and_are_the_same_as_ever(name):
    before = torch.random.get_rng_state()
    digest = hashlib.sha256()
    for key, value in sorted(build(name, "training.seed=7").state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}".encode() + value.numpy().tobytes())
    assert digest.hexdigest()[:16] == INITIAL[name]
    first, again, other = (build(name, f"training.seed={seed}").state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert name == "dummy" or any(not torch.equal(first[key], other[key]) for key in first)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", METHODS)
def test_scores_are_finite_float32_and_one_an_item(fitted, name):
    inputs = [some(), torch.zeros(2, 10, DIM), torch.ones(1, 10, DIM)]
    assert (fitted[name].set_size is None) == (name not in ONE_SIZE)
    inputs += [some(size=3), some(size=50)] if name not in ONE_SIZE else []
    for features in inputs:
        scores = fitted[name].score_sets(features)
        assert (scores.dtype, scores.shape) == (torch.float32, features.shape[:2])
        assert scores.isfinite().all()
    with pytest.raises(ValueError, match=r"set features must be \(B, S, D\) with .*D=12, got \(3, 10, 11\)"):
        fitted[name].score_sets(some(dim=11))


@pytest.mark.parametrize("name", EQUIVARIANT)
@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(10)), seed=st.integers(0, 100))
def test_permuting_the_items_permutes_the_scores(fitted, name, order, seed):
    x = some(seed=seed)
    scores = fitted[name].score_sets(x)
    torch.testing.assert_close(fitted[name].score_sets(x[:, order]), scores[:, order], rtol=1e-4, atol=1e-5)
    assert scores.std(1).min() > 1e-4, "equal scores are equivariant whatever the method does"


def test_the_flat_mlp_is_not_equivariant_and_the_dummy_sees_positions_only(fitted):
    x, order = some(), torch.arange(9, -1, -1)
    scores, moved = (fitted["mlp"].score_sets(items) for items in (x, x[:, order]))
    assert (scores[:, order] - moved).abs().max() > 0.1
    dummy = build("dummy")
    dummy.load_state_dict({"position": torch.arange(10.0)})
    assert dummy.score_sets(x).tolist() == [list(range(10))] * 3


@pytest.mark.parametrize("name", ONE_SIZE)
def test_what_has_weights_of_each_position_refuses_another_set_size(name):
    method = build(name, "data.set_size=5")
    assert method.set_size == 5
    assert method.score_sets(some(size=5)).shape == (3, 5)
    with pytest.raises(ValueError, match=r"with S=5.*, got \(3, 10"):
        method.score_sets(some())


@pytest.mark.parametrize("name", [name for name in METHODS if name != "random"])
def test_the_state_is_all_that_there_is_to_keep_and_images_that_sets_share_are_scored_as_if_they_did_not(fitted, name):
    features, places = some(batch=1, size=25)[0], torch.arange(40).remainder(25).view(4, 10)
    expected = fitted[name].score_sets(features[places])
    scores = fitted[name].score_encoded(fitted[name].encode_views([features]), places)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    file = io.BytesIO()
    torch.save(fitted[name].state_dict(), file)
    file.seek(0)
    again = build(name, "training.seed=7")
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(again.score_sets(features[places]), expected)


@pytest.mark.parametrize("overrides", CLOSED_FORM.values(), ids=CLOSED_FORM)
def test_without_training_outliers_and_the_anomalies_of_an_easy_store_are_found(task, overrides):
    method = build_method(Config.load(None, overrides), DIM)
    x = 5 + some(batch=10)
    x[range(10), range(10)] = -5 + some(batch=10, seed=2)[:, 0]
    assert method.score_sets(x).argmax(1).tolist() == list(range(10))
    method.fit(task)
    assert evaluate(method, task, task.test, 100)["top1"] > 0.95


@pytest.mark.parametrize("name", EQUIVARIANT)
def test_an_item_is_judged_by_its_company_but_for_the_shared_mlp(fitted, name):
    x = some()
    other = torch.cat([x[:, :1], some(seed=2)[:, 1:]], 1)
    changes = (fitted[name].score_sets(x)[:, 0] - fitted[name].score_sets(other)[:, 0]).abs()
    assert changes.min() > 1e-4 if name != "shared_mlp" else changes.max() == 0


@pytest.mark.parametrize("name", LEARNED)
def test_every_parameter_learns(name):
    method = build(name).train()
    method.seed_dropout(torch.Generator().manual_seed(0))
    if name == "posterior_transformer":  # what is added to Bayes' rule begins as nothing
        torch.nn.init.normal_(method.classifier.weight, generator=torch.Generator().manual_seed(0))
    items = torch.arange(30).view(3, 10)
    inputs = Inputs(
        features=some().flatten(0, 1),
        labels=torch.arange(30) % CLASSES,
        items=items,
        target=torch.tensor([0, 5, 9]),
        rows=torch.arange(30),
    )
    scores, of_classes, labels = method.training_outputs(inputs)
    loss = cross_entropy(scores, inputs.target)
    if of_classes is not None:
        loss = loss + cross_entropy(of_classes, labels)
    loss.backward()
    silent = [key for key, parameter in method.named_parameters() if not parameter.grad.abs().max() > 1e-8]
    # The softmax over a set does not see what is added to all its logits
    last = [key for key, parameter in method.named_parameters() if parameter.numel() == 1]
    assert [key for key in silent if key not in last] == []


@pytest.mark.parametrize(
    ("name", "key"),
    [*((name, "head") for name in LEARNED if name != "dummy"), ("centroid", "distance"), ("knn", "distance")],
)
def test_features_are_standardised_by_the_training_images_where_it_is_wanted(task, name, key):
    plain, scaled = build(name), build(name, f"{key}.standardise=true")
    mean, std = task.statistics()
    scaled.fit(task)
    (scale,) = (module for module in scaled.modules() if isinstance(module, Standardise))
    assert torch.equal(scale.mean, mean)
    assert torch.equal(scale.std, std)
    torch.testing.assert_close(scaled.score_sets(some() * std + mean), plain.score_sets(some()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_mahalanobis_measures_from_the_others_in_the_metric_of_the_within_class_covariance(task, metric):
    method = build("mahalanobis", f"distance.metric={metric}")
    method.fit(task)
    within, _ = naive_covariances(task)
    inverse = np.linalg.inv(within)

    def length(item):
        return np.sqrt(item @ inverse @ item)

    def score(item, others):
        if metric == "l2":
            return length(item - others.mean(0))
        centre = np.mean([other / length(other) for other in others], 0)
        return 1 - item @ inverse @ centre / length(item) / length(centre)

    mean = np.mean([images.mean(0) for images in training_images(task)], 0)
    x = task.gather(task.test.rows[:20])
    expected = score_naively(x.double().numpy() - mean, score)
    np.testing.assert_allclose(method.score_sets(x), expected, rtol=1e-3, atol=1e-5)


def test_plda_is_the_density_of_an_item_alone_and_the_others_together(task, fitted):
    within, between = naive_covariances(task)
    assert np.linalg.eigvalsh(between).min() > 0
    mean = np.mean([images.mean(0) for images in training_images(task)], 0)
    one = multivariate_normal(mean, between + within)
    nine = multivariate_normal(np.tile(mean, 9), np.kron(np.ones((9, 9)), between) + np.kron(np.eye(9), within))
    x = task.gather(task.test.rows[:20])
    scores = fitted["plda"].score_sets(x).double().numpy()
    expected = score_naively(x, lambda item, others: one.logpdf(item) + nine.logpdf(others.ravel()))
    differences = [each - each.mean(1, keepdims=True) for each in (scores, expected)]
    np.testing.assert_allclose(*differences, rtol=1e-3, atol=1e-2)


def test_normalised_plda_has_the_coordinates_of_the_model(task, fitted):
    method, index = fitted["normalised_plda"], task.train
    images = task.gather(index.rows[None])[0]
    x = Normaliser.fit(images.numpy())(images.numpy())
    mean, projection, ratio, _ = fit_two_covariances(lambda part: x[part], task.train_labels)
    coordinates = len(ratio)
    assert 1 < coordinates <= min(DIM, len(index.classes) - 1)
    encoded = method.encode(images).numpy()
    np.testing.assert_allclose(encoded[:, :coordinates], (x - mean) @ projection, atol=1e-3)
    np.testing.assert_allclose(method.ratio[:coordinates], ratio, rtol=1e-5)
    assert not encoded[:, coordinates:].any()
    assert evaluate(method, task, task.test, 100)["top1"] > 0.9


def test_between_shrinkage_lets_classes_differ_in_all_dimensions():
    generator = np.random.default_rng(0)
    within, means = np.cov(generator.normal(size=(6, 50))), generator.normal(size=(4, 6))
    between = np.cov(means.T)
    like_within = np.trace(np.linalg.solve(within, between)) / 6 * within  # of the same mean variance, where W is 1
    projection, ratio = diagonalise(within, means, np.full(4, 1e12), 0.3)
    np.testing.assert_allclose(projection.T @ within @ projection, np.eye(6), atol=1e-9)
    drawn = 0.7 * between + 0.3 * like_within
    np.testing.assert_allclose(projection.T @ drawn @ projection, np.diag(ratio), atol=1e-9)


def test_plda_needs_no_more_classes_than_there_are_dimensions(tmp_path):
    task = prepare(make_store(tmp_path / "s.h5", classes=3, train=40, feature_dim=DIM), Config().data)
    method = build("plda")
    method.fit(task)
    assert method.ratio.min() >= 0
    assert evaluate(method, task, task.test, 100)["top1"] > 0.95


def score_naively(x, score):
    """What `score` says of each item (D,) of sets (B, S, D), and of the others (S - 1, D)."""
    sets = np.asarray(x, float)
    return np.array([[score(items[i], np.delete(items, i, 0)) for i in range(len(items))] for items in sets])


def training_images(task):
    rows = np.split(task.train.rows, task.train.starts[1:])
    return [task.features[0][0, torch.from_numpy(each)].double().numpy() for each in rows]


def naive_covariances(task):
    """Within classes, shrunk, and between their true means."""
    images = training_images(task)
    residuals = np.concatenate([each - each.mean(0) for each in images])
    within = LedoitWolf(assume_centered=True).fit(residuals).covariance_
    means = np.stack([each.mean(0) for each in images])
    scatter = (means - means.mean(0)).T @ (means - means.mean(0)) / (len(means) - 1)
    return within, scatter - within * np.mean([1 / len(each) for each in images])


def test_leaving_the_item_out_compares_it_with_the_others_and_changes_no_ranking_by_l2():
    with_all = build("centroid", "distance.metric=l2", "distance.leave_one_out=false")
    without = build("centroid", "distance.metric=l2", "distance.leave_one_out=true")
    torch.testing.assert_close(without.score_sets(some()), with_all.score_sets(some()) * 10 / 9)
    expected = score_naively(normalize(some(), dim=-1), lambda item, others: cosine(item, others.mean(0)))
    np.testing.assert_allclose(build("centroid").score_sets(some()), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("neighbours", [1, 3, 9, 50])
def test_knn_is_the_mean_distance_to_the_nearest_others(metric, neighbours):
    distance = euclidean if metric == "l2" else cosine
    expected = score_naively(some(), lambda x, others: np.sort([distance(x, y) for y in others])[:neighbours].mean())
    found = NearestNeighbours(DIM, neighbours, metric, False).score_sets(some())
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_random_scores_are_uniform_repeatable_and_blind():
    before = torch.random.get_rng_state()
    scores = Random(DIM, 3).score_sets(some(batch=2000))
    assert kstest(scores.ravel().numpy(), "uniform").pvalue > 0.001
    assert torch.equal(Random(DIM, 3).score_sets(some(batch=2000, seed=2)), scores)
    assert not torch.equal(Random(DIM, 4).score_sets(some(batch=2000)), scores)
    assert torch.equal(build("random", "training.seed=3").score_sets(some(batch=2000)), scores)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("layers", "blocks"), [(1, 1), (2, 1), (4, 2), (5, 2), (8, 4)])
def test_a_set_transformer_is_as_deep_as_the_transformer_with_half_as_many_blocks(layers, blocks):
    method = build("set_transformer", f"head.layers={layers}", "head.inducing=5")
    assert len(method.blocks) == blocks
    assert {tuple(block.points.shape) for block in method.blocks} == {(5, 16)}
