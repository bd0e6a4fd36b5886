"""What must not change unnoticed: the bytes of a store, and what a seed trains."""

import hashlib

import numpy as np
import pytest
import torch
from fabricate import make_config, train_method

from common.store_writer import name_arrays, write_store
from common.synthetic import make_header, make_store
from train.config import Config
from train.loop import RunState
from train.task import prepare

STORE = "4c2e5f15d1f96aa81f989a5d43c409c5109a45ff70b98d84dcf857b8a8f0ac32"
EPOCHS = ["training.epochs=2", "training.batch_size=32", "training.precision=float32", "training.device=cpu"]
SIZES = ["head.width=8", "head.heads=2", "head.layers=1", "head.feed_forward=8", "head.hidden=8", "head.inducing=2"]
TRAINED = {
    "transformer": (2.53113, 2.53113, 8.5965),
    "mlp": (3.0105, 3.01056, 4.9583),
    "set_transformer": (2.62083, 2.55639, 12.61902),
    "deep_plda": (2.105, 1.92713, 5.60402),
    "posterior": (2.36427, 2.09347, 4.94186),
    "posterior_transformer": (2.36968, 2.10101, 9.52121),
}


def test_the_bytes_of_a_store_are_what_they_were(tmp_path):
    n = 12
    arrays = {
        "features": np.arange(2 * n * 4, dtype="<f4").reshape(2, n, 4) / 8,
        "labels": np.arange(n) % 3,
        "image_index": np.tile(np.arange(n // 2), 2),
        "split": np.repeat(np.arange(2, dtype=np.uint8), n // 2),
        "image_sha256": np.arange(n * 32, dtype=np.uint8).reshape(n, 32),
        "thumbnails": np.arange(n * 3072, dtype=np.uint8).reshape(n, 32, 32, 3),
        **name_arrays([f"é/{row}.png" for row in range(n)]),
    }
    write_store(tmp_path / "s.h5", make_header(3, 4, views=2), arrays)
    assert hashlib.sha256((tmp_path / "s.h5").read_bytes()).hexdigest() == STORE


def trained(tmp_path, method):
    """The last losses of training and validation, and the norm of the best weights, after two tiny epochs."""
    task = prepare(make_store(tmp_path / "s.h5", spread=1.0), Config().data)
    progress = RunState()
    model = train_method(make_config(f"method={method}", *EPOCHS, *SIZES), task, progress)
    weights = torch.cat([value.double().flatten() for value in model.state_dict().values()])
    return progress.history[-1].train_loss, progress.history[-1].val_loss, float(weights.norm())


@pytest.mark.parametrize("method", TRAINED)
def test_a_seed_trains_what_it_trained(tmp_path, method):
    """To 3 digits: processors add in different orders."""
    assert trained(tmp_path, method) == pytest.approx(TRAINED[method], rel=1e-3)
