import pytest
import torch

from train.config import Config
from train.methods.base import Dropout, build_method


def head(dropout=0.0):
    changes = ["head.width=16", "head.layers=2", "head.feed_forward=32", f"head.dropout={dropout}"]
    return build_method(Config.load(None, changes), 12).eval()


def features(size=10):
    return torch.randn(3, size, 12, generator=torch.Generator().manual_seed(1))


def test_attention_maps_are_distributions_over_the_set():
    maps = head().attention_maps(features())
    assert maps.shape == (2, 3, 4, 10, 10)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, 4, 10))
    assert head()(features(size=1)).shape == (3, 1)


def test_attention_equals_that_of_torch():
    model, x = head(), features()
    attention, normed = model.layers[0].attention, model.layers[0].attention_norm(model.embed(x))
    qkv = attention.query_key_value(normed).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
    expected = torch.nn.functional.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(normed), attention.output(expected))


def test_dropout_draws_from_its_generator_only():
    before = torch.random.get_rng_state()
    outputs = []
    for _ in range(2):
        model = head(dropout=0.5).train()
        model.seed_dropout(torch.Generator().manual_seed(7))
        outputs.append(model(features()))
    assert torch.equal(*outputs)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_dropout_keeps_the_mean_is_off_in_evaluation_and_needs_a_generator():
    dropout, ones = Dropout(0.25), torch.ones(100_000)
    dropout.generator = torch.Generator().manual_seed(0)
    dropped = dropout(ones)
    assert (dropped == 0).float().mean() == pytest.approx(0.25, abs=0.01)
    assert dropped.mean() == pytest.approx(1, abs=0.01)
    assert torch.equal(dropout.eval()(ones), ones)
    with pytest.raises(RuntimeError, match="seed_dropout"):
        Dropout(0.5)(torch.ones(3))
