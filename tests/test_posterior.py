"""The heads that know classes: posterior and deep_plda."""

import numpy as np
import pytest
import torch
from fabricate import train_method
from scipy.stats import multivariate_normal

from common.synthetic import make_store
from train.config import Config, DataConfig
from train.gaussian import log_density_ratio
from train.loop import evaluate
from train.methods.base import build_method
from train.methods.posterior import log_complement
from train.task import prepare

SHARED = ["training.images_per_class=10", "training.class_loss=1", "training.batch_size=60", "head.hidden=32"]
QUICK = ["training.epochs=30", "training.learning_rate=0.01", "training.warmup_epochs=1", "head.standardise=true"]


def trained(task, *settings):
    """A method that was trained quickly, in batches that share their images."""
    return train_method(Config.load(None, [*SHARED, *QUICK, *settings]), task)


def test_the_score_is_bayes_rule_written_out():
    head = build_method(Config(method="posterior"), 6, 4).eval()
    features = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))
    q = head.encode(features).detach().softmax(-1).double()
    scores = head.score_sets(features).double()
    for b in range(3):
        joint = [
            sum((1 - q[b, i, c]) * np.prod([float(q[b, j, c]) for j in range(5) if j != i]) for c in range(4))
            for i in range(5)
        ]
        none = sum(np.prod([float(q[b, j, c]) for j in range(5)]) for c in range(4))
        np.testing.assert_allclose(scores[b].exp().numpy(), np.array(joint) / 3 / none, rtol=1e-4)


def test_certain_images_give_finite_scores_and_gradients():
    logits = torch.zeros(1, 4, 3)
    logits[0, :3, 0] = 200.0
    logits[0, 3, 1] = 200.0
    logits.requires_grad_()
    scores = build_method(Config(method="posterior"), 6, 3).compare(logits)
    assert scores.argmax() == 3
    scores.sum().backward()
    assert torch.isfinite(scores).all()
    assert torch.isfinite(logits.grad).all()
    q = torch.tensor([1e-6, 0.3, 0.999])
    torch.testing.assert_close(log_complement(q.log()), (1 - q).log(), rtol=1e-3, atol=1e-6)
    assert torch.isfinite(log_complement(torch.zeros(1))).all()


def test_the_density_ratio_is_that_of_gaussians():
    x, ratio = np.random.default_rng(0).normal(size=(4, 2)), np.array([0.5, 3.0])

    def log_density(items):  # of images of one class, whose mean is drawn first
        n = len(items)
        return sum(
            multivariate_normal(np.zeros(n), np.eye(n) + lam * np.ones((n, n))).logpdf(items[:, d])
            for d, lam in enumerate(ratio)
        )

    naive = np.array([log_density(x[[i]]) + log_density(np.delete(x, i, 0)) for i in range(4)])
    scores = log_density_ratio(torch.from_numpy(x)[None], torch.from_numpy(ratio))[0].numpy()
    np.testing.assert_allclose(scores - scores.mean(), naive - naive.mean(), rtol=1e-9)


@pytest.mark.parametrize("name", ["posterior", "deep_plda"])
def test_it_learns_from_batches_that_share_images(name, tmp_path):
    task = prepare(make_store(tmp_path / "s.h5", views=2, spread=0.6), Config().data)
    models = [trained(task, f"method={name}") for _ in range(2)]
    assert evaluate(models[0], task, task.test, 100)["top1"] > 0.9
    assert all(torch.equal(a, b) for a, b in zip(*(model.state_dict().values() for model in models), strict=True))


def test_deep_plda_finds_the_anomaly_among_classes_never_seen(tmp_path):
    store = make_store(tmp_path / "s.h5", classes=12, feature_dim=24, spread=0.5)
    task = prepare(store, DataConfig(unseen_classes=4))
    assert evaluate(trained(task, "method=deep_plda"), task, task.test, 100)["top1"] > 0.8


def test_class_loss_makes_the_posteriors_those_of_the_classes(tmp_path):
    task = prepare(make_store(tmp_path / "s.h5"), Config().data)
    model = trained(task, "method=posterior", "training.set_loss=0").eval()
    labels = np.repeat(np.arange(len(task.train.classes)), task.test_images.counts)
    with torch.inference_mode():
        predicted = model.encode(task.gather(task.test_images.rows[None])[0]).argmax(-1).numpy()
    assert (predicted == labels).mean() > 0.9


def test_inputs_hold_each_image_of_the_sets_once_with_its_class(tmp_path):
    store = make_store(tmp_path / "s.h5", views=2)
    task = prepare(store, Config.load(None, ["data.views=all", "data.classes=class1,class3"]).data)
    sets = task.val
    inputs = task.inputs(sets, np.random.default_rng(0))
    rows = np.unique(sets.rows)
    assert inputs.features.shape == (len(rows), 16)
    assert (rows[inputs.items.numpy()] == sets.rows).all()
    assert (task.train.classes[inputs.labels.numpy()] == store.labels[rows]).all()
    views = store.features[:, rows]
    is_first = (inputs.features.numpy() == views[0]).all(1)
    assert (is_first | (inputs.features.numpy() == views[1]).all(1)).all()
    assert 0 < is_first.mean() < 1
