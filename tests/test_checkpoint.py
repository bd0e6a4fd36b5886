import zipfile

import pytest
import torch
from fabricate import make_epoch, refuses
from msgspec import to_builtins

from common.schema import to_toml
from train.checkpoint import SEAL_BYTES, Checkpoint, load_checkpoint, load_head, require_fitting, save_checkpoint, seal
from train.config import Config, HeadConfig
from train.loop import build_optimizer
from train.methods.base import build_method
from train.run_folder import RunFolder

CONFIG = Config.load(None, ["method=shared_mlp", "head.hidden=2", "training.epochs=4", "training.batch_size=64"])
STORE = "a" * 64


def record(epoch):
    return to_builtins(make_epoch(epoch))


def made():
    """What a run is after an epoch of one step."""
    model = build_method(CONFIG, 16, 4)
    optimizer = build_optimizer(model, CONFIG.training)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return Checkpoint(
        config=CONFIG,
        input_dim=16,
        store_identity=STORE,
        history=[make_epoch(1)],
        head=model.state_dict(),
        model=model.state_dict(),
        optimizer=optimizer.state_dict(),
    )


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "run/checkpoint.pt"
    save_checkpoint(path, made())
    return path


def content_of(path):
    return torch.load(path, weights_only=True)


def rewritten(path, **changes):
    """The checkpoint with other content, under a seal that is right."""
    content = content_of(path)
    torch.save({key: value for key, value in {**content, **changes}.items() if value != "gone"}, path)
    path.write_bytes(seal(path.read_bytes()))
    return path


def test_what_is_saved_comes_back(checkpoint):
    saved, loaded = made(), load_checkpoint(checkpoint)
    for name in ("config", "input_dim", "store_identity", "history"):
        assert getattr(loaded, name) == getattr(saved, name)
    for name in ("head", "model", "optimizer"):
        torch.testing.assert_close(getattr(loaded, name), getattr(saved, name), rtol=0, atol=0)
    require_fitting(checkpoint, loaded, build_method(CONFIG, 16, 4))


def test_it_is_a_zip_file_that_torch_opens_and_equal_content_is_equal_bytes(checkpoint, tmp_path):
    assert zipfile.ZipFile(checkpoint).testzip() is None
    content = content_of(checkpoint)
    assert (content["format"], content["config"], content["history"]) == (2, to_toml(CONFIG), [record(1)])
    assert torch.equal(content["head"]["layers.0.weight"], made().head["layers.0.weight"])
    save_checkpoint(tmp_path / "again.pt", made())
    assert (tmp_path / "again.pt").read_bytes() == checkpoint.read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"not a checkpoint",
        lambda data: b"",
        lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
        lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
        lambda data: data.replace(b"sha256:", b"sha257:"),
        lambda data: data[:-SEAL_BYTES],
    ],
)
def test_a_damaged_checkpoint_is_one_sentence_that_advises_nothing_rash(checkpoint, damage):
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    refuses(r"is not a sound checkpoint .*: put back a copy, or move this one file away", load_checkpoint, checkpoint)
    RunFolder(checkpoint.parent).done.write_text("")
    refuses(r"the report beside it is sound; put back a copy, or choose another --run", load_checkpoint, checkpoint)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_no_damage(checkpoint, monkeypatch, error):
    def load(*_, **options):
        raise error

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(type(error)):
        load_checkpoint(checkpoint)


def test_every_byte_is_under_the_seal(checkpoint):
    data = checkpoint.read_bytes()
    for place in range(0, len(data), 37):
        checkpoint.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        refuses("is not a sound checkpoint", load_checkpoint, checkpoint)


SPARSE = torch.ones(1).to_sparse()
WRONG = {
    "format": ["gone", 1, "2", SPARSE],
    "config": [3, "method ="],
    "input_dim": [None],
    "store_identity": [7],
    "head": [None, {"layers.0.weight": 1.0}],
    "history": [
        *([1], [record(2)], [{"epoch": 1}], [record(1) | {"another": b"key"}], [record(1) | {"arithmetic": 3}]),
        [record(1) | {"epoch": SPARSE}],
    ],
    "model": [{0: torch.ones(1)}, None],
    "optimizer": [None, "gone"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_content_of_the_wrong_kind_is_refused(checkpoint, key, value):
    refuses("is not a sound checkpoint", load_checkpoint, rewritten(checkpoint, **{key: value}))


def test_an_unfinished_run_without_its_state_or_of_a_newer_version_is_not_begun_anew_in_the_middle(checkpoint):
    for changes, sentence in (
        ({"model": None, "optimizer": None}, "what is needed to go on is not in it"),
        ({"history": [record(epoch) for epoch in range(1, 6)]}, "it has more epochs than its config"),
        ({"format": 3}, "has format 3, this code reads up to 2"),
    ):
        refuses(sentence, load_checkpoint, rewritten(checkpoint, **changes))


@pytest.mark.parametrize("part", ["head", "model", "optimizer"])
@pytest.mark.parametrize("change", ["shape", "dtype", "name", "sparse"])
def test_states_of_another_method_are_refused(checkpoint, part, change):
    state = content_of(checkpoint)[part]
    tensors = state if part != "optimizer" else state["state"][0]
    name = next(name for name, value in tensors.items() if value.ndim)
    changes = {"shape": lambda t: t[:-1], "dtype": lambda t: t.double(), "sparse": lambda t: t.to_sparse()}
    if change == "name":
        tensors["another"] = tensors.pop(name)
    elif part == "optimizer" and change in ("dtype", "sparse"):
        state["state"][0]["step"] = 3
    else:
        tensors[name] = changes[change](tensors[name])
    other = load_checkpoint(rewritten(checkpoint, **{part: state}))
    refuses(
        "method that this version builds otherwise", require_fitting, checkpoint, other, build_method(CONFIG, 16, 4)
    )


def test_pickled_code_is_not_run_and_a_zip_bomb_is_not_unpacked(checkpoint):
    class Trap:
        def __reduce__(self):
            return exec, ("raise SystemExit('the trap was sprung')",)

    torch.save({"head": Trap(), "config": "", "format": 2}, checkpoint)
    refuses("is not a sound checkpoint", load_checkpoint, checkpoint)
    checkpoint.write_bytes(seal(checkpoint.read_bytes()))
    refuses("is not a sound checkpoint", load_checkpoint, checkpoint)
    with zipfile.ZipFile(checkpoint, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    refuses("is not a sound checkpoint", load_checkpoint, checkpoint)


@pytest.mark.parametrize("method", ["transformer", "posterior", "deep_plda", "mahalanobis", "centroid", "dummy"])
def test_the_head_of_any_method_comes_back(tmp_path, method):
    config = Config(method, head=HeadConfig(width=8, heads=2, hidden=5, layers=1))
    trained = build_method(config, 16, 7)
    state = Checkpoint(config=config, input_dim=16, store_identity=STORE, head=trained.state_dict())
    save_checkpoint(tmp_path / "c.pt", state)
    head = load_head(tmp_path / "c.pt")
    features = torch.randn(3, 10, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(head.score_sets(features), trained.score_sets(features))
    for same in (features.double(), features.numpy(), features.tolist()):
        assert torch.equal(head.score_sets(same), head.score_sets(features))


def test_what_is_no_checkpoint_is_not_to_be_moved_away(tmp_path):
    (tmp_path / "s.h5").write_text("precious")
    for path in (tmp_path, tmp_path / "s.h5", tmp_path / "none.pt"):
        refuses("the checkpoint.pt of a run", load_head, path)
