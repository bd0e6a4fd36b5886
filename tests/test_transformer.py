import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config import Config
from train.methods import build_method
from train.methods.base import Dropout


def head(dropout=0.0, seed=0, input_dim=12):
    changes = ["head.width=16", "head.layers=2", "head.feed_forward=32", f"head.dropout={dropout}"]
    return build_method(Config.load(None, [*changes, f"training.seed={seed}"]), input_dim).eval()


def features(batch=3, size=10, seed=1, input_dim=12):
    return torch.randn(batch, size, input_dim, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(10)), seed=st.integers(0, 100))
def test_permuting_the_items_permutes_the_logits(order, seed):
    model, x = head(seed=seed), features(seed=seed)
    torch.testing.assert_close(model(x[:, order]), model(x)[:, order], rtol=1e-4, atol=1e-5)


def test_an_item_is_judged_by_the_company_it_keeps():
    model, x = head(), features()
    other = torch.cat([x[:, :1], features(seed=2)[:, 1:]], 1)
    assert (model(x)[:, 0] - model(other)[:, 0]).abs().min() > 1e-4


@pytest.mark.parametrize("size", [1, 3, 50])
def test_any_set_size_gives_one_logit_an_item(size):
    assert head()(features(size=size)).shape == (3, size)


def test_attention_maps_are_distributions_over_the_set():
    maps = head().attention_maps(features())
    assert maps.shape == (2, 3, 4, 10, 10)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, 4, 10))


def test_attention_equals_that_of_torch():
    model, x = head(), features()
    attention, normed = model.layers[0].attention, model.layers[0].attention_norm(model.embed(x))
    qkv = attention.query_key_value(normed).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
    expected = torch.nn.functional.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(normed), attention.output(expected))


def test_every_parameter_learns():
    model = head(dropout=0.1).train()
    model.seed_dropout(torch.Generator().manual_seed(0))
    torch.nn.functional.cross_entropy(model(features()), torch.tensor([0, 5, 9])).backward()
    silent = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().any()]
    # The softmax over a set does not see what is added to all its logits: the last bias has no gradient but rounding
    assert [name for name in silent if name != "classifier.bias"] == []


def test_initialisation_and_dropout_draw_from_their_generators_only():
    before = torch.random.get_rng_state()
    states, outputs = [], []
    for _ in range(2):
        model = head(dropout=0.5).train()
        model.seed_dropout(torch.Generator().manual_seed(7))
        states.append(model.state_dict())
        outputs.append(model(features()))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert torch.equal(*outputs)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(head(seed=1).embed.weight, head(seed=2).embed.weight)


def test_dropout_keeps_the_mean_and_is_off_in_evaluation():
    dropout, ones = Dropout(0.25), torch.ones(100_000)
    dropout.generator = torch.Generator().manual_seed(0)
    dropped = dropout(ones)
    assert (dropped == 0).float().mean() == pytest.approx(0.25, abs=0.01)
    assert dropped.mean() == pytest.approx(1, abs=0.01)
    assert torch.equal(dropout.eval()(ones), ones)


def test_dropout_without_a_generator_says_so():
    with pytest.raises(RuntimeError, match="seed_dropout"):
        Dropout(0.5)(torch.ones(3))


def test_another_feature_dim_is_refused():
    with pytest.raises(ValueError, match=r"set features must be \(B, S, D\) with D=12, got \(3, 10, 11\)"):
        head()(features(input_dim=11))
