"""Classes that do not exist: mixtures of two, so that a head learns to compare and not just to recognise."""

import numpy as np
import torch

from train.sets import ClassIndex, sample_sets
from train.task import NO_CLASS, Inputs

WEIGHTS = 0.3, 0.7  # of the first class of a mixture; beyond, it is too much like one of the two


def add_mixed_classes(inputs: Inputs, number: int, generator: np.random.Generator) -> Inputs:
    """The images of a batch and `number` more classes, and sets of them all, each image once the anomaly.

    A mixed class is m + (w (a - m) + (1 - w) (b - m)) / √(w² + (1 - w)²), image by image of two classes in random
    order; m is the mean of the batch, and the root keeps the spread within classes as it was. Mixup (Zhang et al.,
    2018) of whole classes, which become new ones; the label of their images is `NO_CLASS`, their row that of the first
    of the two. The batch needs S - 1 images of each of its classes.
    """
    features, size = inputs.features, inputs.items.shape[1]
    real = ClassIndex.build(np.arange(len(features)), inputs.labels.numpy())
    images = int(real.counts.min())
    pairs = np.stack([generator.permutation(len(real.counts))[:2] for _ in range(number)])
    order = generator.permuted(np.broadcast_to(np.arange(images), (number, 2, images)), axis=2)
    chosen = torch.from_numpy(real.rows[real.starts[pairs][:, :, None] + order])
    weight = torch.from_numpy(generator.uniform(*WEIGHTS, (number, 1, 1))).float()
    mean = features.mean(0)
    first, second = (features - mean)[chosen].unbind(1)
    mixed = mean + (weight * first + (1 - weight) * second) / (weight.square() + (1 - weight).square()).sqrt()

    labels = np.concatenate([inputs.labels.numpy(), np.repeat(real.classes.max() + 1 + np.arange(number), images)])
    index = ClassIndex.build(np.arange(len(labels)), labels)
    sets = sample_sets(index, np.argsort(index.rows), size, generator)
    return Inputs(
        features=torch.cat([features, mixed.flatten(0, 1)]),
        labels=torch.cat([inputs.labels, torch.full((number * images,), NO_CLASS)]),
        items=torch.from_numpy(sets.rows),
        target=torch.from_numpy(sets.target),
        rows=torch.cat([inputs.rows, inputs.rows[chosen[:, 0]].flatten()]),
    )
