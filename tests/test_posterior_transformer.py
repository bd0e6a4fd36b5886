"""The Transformer over class posteriors that come from networks which never saw the image."""

import copy

import numpy as np
import pytest
import torch
from fabricate import train_method
from torch.nn import functional

from common.synthetic import make_store
from train.config import Config
from train.loop import evaluate
from train.methods.base import build_method
from train.methods.posterior import log_odds
from train.task import NO_CLASS, Inputs, prepare

SMALL = ["head.hidden=16", "head.width=16", "head.heads=2", "head.feed_forward=16", "head.layers=1"]
DIM, CLASSES, MEMBERS = 6, 4, 3


def head(*overrides):
    settings = ["method=posterior_transformer", *SMALL, f"head.members={MEMBERS}", *overrides]
    made = build_method(Config.load(None, settings), DIM, CLASSES)
    made.seed_dropout(torch.Generator().manual_seed(0))
    return made


def some_inputs(images=12, sets=5, size=4):
    generator = np.random.default_rng(0)
    items = np.stack([generator.permutation(images)[:size] for _ in range(sets)])
    features = generator.normal(size=(images, DIM))
    return Inputs(
        features=torch.from_numpy(features).float(),
        labels=torch.from_numpy(generator.integers(CLASSES, size=images)),
        items=torch.from_numpy(items),
        target=torch.from_numpy(generator.integers(size, size=sets)),
        rows=torch.arange(images) + 7,
    )


def test_it_starts_as_bayes_rule_on_the_mean_of_the_members():
    made, inputs = head().eval(), some_inputs()
    by_member = torch.stack([member(made.standardise(inputs.features)) for member in made.members])
    expected = log_odds(functional.log_softmax(by_member.mean(0), -1)[inputs.items])
    scores = made.score_encoded(made.encode_views([inputs.features]), inputs.items)
    torch.testing.assert_close(scores, expected.detach())


@pytest.mark.parametrize("bayes", ["true", "false"])
def test_an_image_is_judged_by_the_member_that_never_learns_from_it(bayes):
    made, inputs = head("head.dropout=0", f"head.bayes={bayes}"), some_inputs()
    torch.nn.init.normal_(made.classifier.weight, generator=torch.Generator().manual_seed(0))
    scores, class_logits, labels = made.training_outputs(inputs)
    learnt_from = (labels != NO_CLASS).view(MEMBERS, -1)
    assert learnt_from.sum(0).tolist() == [MEMBERS - 1] * len(inputs.rows)
    for number, member in enumerate(made.members):
        judged = ~learnt_from[number]
        assert judged.tolist() == (inputs.rows % MEMBERS == number).tolist()
        before = [parameter.detach().clone() for parameter in member.parameters()]
        with torch.no_grad():
            for parameter in member.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
            changed = (made.training_outputs(inputs)[0] != scores).any(1)
            for parameter, old in zip(member.parameters(), before, strict=True):
                parameter.copy_(old)
        assert changed.tolist() == judged[inputs.items].any(1).tolist()
    assert class_logits.shape == (MEMBERS * len(inputs.rows), CLASSES)
    assert torch.equal(labels.view(MEMBERS, -1)[learnt_from], inputs.labels.repeat(MEMBERS, 1)[learnt_from])


def test_the_loss_on_sets_does_not_reach_the_members_and_a_single_one_learns_from_every_image():
    made = head()
    made.training_outputs(some_inputs())[0].sum().backward()
    assert all(parameter.grad is None for parameter in made.members.parameters())
    assert made.classifier.weight.grad is not None
    _, class_logits, labels = head("head.members=1").training_outputs(some_inputs())
    assert class_logits.shape == (12, CLASSES)
    assert (labels != NO_CLASS).all()


def test_views_are_averaged_before_the_sets_are_compared():
    made, inputs = head(), some_inputs()
    views = [inputs.features, inputs.features.flip(1)]
    with torch.inference_mode():
        expected = made.eval().compare(torch.stack([made.encode(view) for view in views]).mean(0)[inputs.items])
    torch.testing.assert_close(made.score_encoded(made.encode_views(views), inputs.items), expected)


def test_without_layers_there_is_no_attention():
    made, inputs = head("head.layers=0").eval(), some_inputs()
    assert made.attention_maps(inputs.features[inputs.items]) is None
    assert made.score_sets(inputs.features[inputs.items]).shape == (5, 4)
    maps = head().eval().attention_maps(inputs.features[inputs.items])
    assert maps.shape == (1, 5, 2, 4, 4)
    torch.testing.assert_close(maps.sum(-1), torch.ones(1, 5, 2, 4))


@pytest.mark.parametrize("bayes", ["true", "false"])
def test_it_learns_and_tells_sets_without_an_anomaly(tmp_path, bayes):
    store = make_store(tmp_path / "s.h5", classes=4, train=60, test=30, spread=0.1)
    settings = [
        "method=posterior_transformer", "data.set_size=5", *SMALL, "head.members=2", f"head.bayes={bayes}",
        "head.standardise=true", "training.epochs=25", "training.batch_size=60", "training.images_per_class=10",
        "training.class_loss=1", "training.learning_rate=0.01", "training.without_anomaly=0.3",
    ]  # fmt: skip
    config = Config.load(None, settings)
    task = prepare(store, config.data)
    last = {}
    model = train_method(config, task, save=lambda state: last.update(copy.deepcopy(state.model)))
    model.load_state_dict(last)  # the best epoch is an early one: all are right on validation
    assert evaluate(model, task, task.test, 100)["top1"] > 0.9
    index = task.test_images
    clean = index.rows[index.starts[:, None] + np.arange(5)]
    compute_log_odds_of_any = [model.score_sets(task.gather(rows)).logsumexp(1) for rows in (clean, task.test.rows)]
    assert compute_log_odds_of_any[0].max() < compute_log_odds_of_any[1].median()
