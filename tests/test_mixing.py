import numpy as np
import pytest
import torch

from train.mixing import WEIGHTS, add_mixed_classes
from train.task import NO_CLASS, Inputs

CLASSES, IMAGES, DIM, SIZE, MIXED = 5, 12, 8, 6, 30
N = CLASSES * IMAGES


def batch(spread=0.1, offset=0.0, seed=0):
    """Images of classes far apart, in no order."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(CLASSES), IMAGES))
    features = 5 * np.eye(CLASSES, DIM)[labels] + spread * generator.normal(size=(N, DIM)) + offset
    items = torch.zeros(3, SIZE, dtype=torch.int64)
    return Inputs(
        features=torch.from_numpy(features).float(),
        labels=torch.from_numpy(labels),
        items=items,
        target=items[:, 0],
        rows=torch.arange(N),
    )


def mix(inputs, seed=1, number=MIXED):
    return add_mixed_classes(inputs, number, np.random.default_rng(seed))


def test_the_images_stay_and_the_mixed_ones_have_no_class():
    inputs = batch()
    made = mix(inputs)
    assert made.features.shape == (N + MIXED * IMAGES, DIM)
    assert made.features.dtype == torch.float32
    torch.testing.assert_close(made.features[:N], inputs.features, rtol=0, atol=0)
    assert made.labels[:N].tolist() == inputs.labels.tolist()
    assert set(made.labels[N:].tolist()) == {NO_CLASS}


def test_each_image_is_once_the_anomaly_of_a_set_of_another_class_mixed_or_not():
    inputs = batch()
    made = mix(inputs)
    identity = np.concatenate([inputs.labels.numpy(), CLASSES + np.repeat(np.arange(MIXED), IMAGES)])
    items, target = made.items.numpy(), made.target.numpy()
    assert items.shape == (len(identity), SIZE)
    anomalies = items[np.arange(len(items)), target]
    assert sorted(anomalies) == list(range(len(identity)))
    classes = identity[items]
    for row, own, position in zip(classes, identity[anomalies], target, strict=True):
        (inlier,) = set(np.delete(row, position).tolist())
        assert inlier != own
    assert all(len(set(row)) == SIZE for row in items.tolist())
    of_mixed = np.delete(classes, 0, 1).min(1) >= CLASSES
    assert of_mixed.any()
    assert not of_mixed.all()


def test_a_mixed_class_lies_between_two_classes_and_is_as_wide_as_they_are():
    inputs = batch(spread=0.0)
    mean = inputs.features.mean(0)
    mixed = mix(inputs).features[N:].view(MIXED, IMAGES, DIM)
    torch.testing.assert_close(mixed, mixed[:, :1].expand_as(mixed))
    centres = torch.stack([inputs.features[inputs.labels == label][0] for label in range(CLASSES)]) - mean
    for centre in mixed[:, 0] - mean:
        # the weights of the classes, up to the same constant in each, which centres that sum to 0 do not tell
        weights = torch.linalg.lstsq(centres.T, centre, driver="gelsd").solution
        weights = weights - weights.median()
        assert (weights.abs() > 1e-4).sum() == 2
        low, high = sorted(weights[weights.abs() > 1e-4].tolist())
        assert WEIGHTS[0] <= low / (low + high) <= 0.5
        assert low**2 + high**2 == pytest.approx(1, abs=1e-4)
    wide = mix(batch(spread=0.5)).features[N:].view(MIXED, IMAGES, DIM)
    assert wide.std(1).mean() == pytest.approx(0.5, rel=0.1)


def test_the_generator_alone_decides_and_not_where_the_features_are_centred():
    plain, moved = mix(batch()), mix(batch(offset=100.0))
    torch.testing.assert_close(moved.features - 100, plain.features, rtol=0, atol=1e-4)
    first, again, other = mix(batch()), mix(batch()), mix(batch(), seed=2)
    for name, value in vars(first).items():
        torch.testing.assert_close(value, getattr(again, name), rtol=0, atol=0)
    assert not torch.equal(first.features, other.features)
