"""What training computes must not change unnoticed: figures of every method, of the Gaussian, and a report's fields.

`PYTHONPATH=.:tests python tests/test_golden_train.py` prints the table anew. Five digits are written and three to four
are compared, as the last ones depend on the processor.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from fabricate import make_config, train_method

from common.synthetic import make_store
from find.classes import gaussian_scores
from train.fit import fit
from train.gaussian import Normaliser
from train.loop import evaluate, predict
from train.methods import METHODS
from train.task import prepare

SETTINGS = [
    *("head.width=16", "head.layers=1", "head.heads=2", "head.feed_forward=16", "head.hidden=24", "head.inducing=3"),
    *("head.members=2", "head.standardise=true", "training.epochs=2", "training.batch_size=32"),
    *("training.learning_rate=0.003", "training.warmup_epochs=0.5", "training.precision=float32"),
    *("training.class_loss=1", "data.views=all"),
]
# Validation loss, then the scores of the first three items of the first test set, from the mean of the set's
EXPECTED = {
    "random": [2.3185, -0.0072321, 0.15516, -0.37441],
    "dummy": [2.3021, 0.00082863, 0.0081873, -0.0068464],
    "centroid": [1.7019, -0.087467, -0.013131, -0.11788],
    "knn": [1.8607, -0.07789, 0.00043592, -0.067459],
    "mahalanobis": [1.6467, -0.11499, -0.098876, -0.15309],
    "plda": [0.069331, -1.6682, -1.2781, -1.4706],
    "normalised_plda": [0.045621, -2.2181, -2.72, -1.3686],
    "mlp": [2.4331, 0.21186, -0.46833, 0.31813],
    "shared_mlp": [2.3198, -0.12029, 0.3675, -0.22235],
    "deepsets": [2.3138, -0.13162, -0.16446, -0.63211],
    "set_transformer": [2.3883, 0.38754, -0.96367, 0.63949],
    "deep_plda": [0.54551, -0.46062, -0.57106, -0.15917],
    "posterior": [1.6812, -0.15444, 0.51879, -0.085008],
    "transformer": [2.335, -0.74702, -0.004064, -0.046324],
    "posterior_transformer": [1.8604, 0.20178, 0.041194, -0.17998],
}
LOG_RATIOS = [
    [0.460488, -3.00626, -0.759306, 0.684067],
    [-0.565861, 0.999458, -0.986196, -1.62287],
    [0.00432289, -1.00125, 0.449189, 0.346049],
]
REPORT = Path(__file__).parents[1] / "experiments" / "phase5" / "runs" / "full-seed0.json"


def measure(folder: Path, method: str) -> list[float]:
    store = make_store(folder / "s.h5", classes=6, train=30, test=12, feature_dim=12, views=2, spread=0.8)
    config = make_config(*SETTINGS, f"method={method}")
    task = prepare(store, config.data)
    model = train_method(config, task)
    scores = predict(model, task, task.test[:1], 100)[0]
    # From their mean: what is added to all scores has no gradient, so that AdamW makes a step of mere rounding there
    return [evaluate(model, task, task.val, 100)["loss"], *(scores - scores.mean())[:3].tolist()]


def keys(value, prefix=""):
    """The dotted keys of a report, without those that are names of classes, settings, versions or sizes of sets."""
    if not isinstance(value, dict) or prefix in (".config", ".versions", ".beyond.set_size"):
        return {prefix}
    return set().union(*(keys(inner, f"{prefix}.{key}") for key, inner in value.items() if not key.startswith("by_")))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_gives_the_same_figures_as_before(tmp_path, method):
    np.testing.assert_allclose(measure(tmp_path, method), EXPECTED[method], rtol=2e-3, atol=2e-4)


def test_the_gaussian_gives_the_same_ratios_as_before():
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(60, 5)) + np.repeat(np.eye(5)[:4], 15, 0), np.arange(60) // 15
    x, rows = Normaliser.fit(features)(features), np.arange(60)
    np.testing.assert_allclose(gaussian_scores(x, rows, labels, rows[::20]), LOG_RATIOS, rtol=1e-4)


def test_a_report_has_the_same_fields_as_before(tmp_path):
    superclass = [0, 0, 0, 1, 1, 1]
    store = make_store(tmp_path / "s.h5", classes=6, train=30, test=12, feature_dim=12, class_superclass=superclass)
    more = ["method=posterior_transformer", "training.epochs=1", "data.set_size=5", "data.val_fraction=0.3"]
    made = json.loads(fit(make_config(*SETTINGS, *more), store, tmp_path / "run", lambda line: None).to_json())
    written = keys(json.loads(REPORT.read_text(encoding="utf-8")))
    assert keys(made) | {".beyond.none.statistic"} == written, "the statistic is left out where it is the usual one"


if __name__ == "__main__":
    for name in METHODS:
        figures = ", ".join(f"{value:.5g}" for value in measure(Path(tempfile.mkdtemp()), name))
        print(f'    "{name}": [{figures}],')
