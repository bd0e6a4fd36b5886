import argparse
import io
import pickle
import zipfile

import pytest
import torch
from fabricate import refuses
from safetensors.torch import save_file
from torch import nn

import extract.weights
from extract.weights import load_weights


class Net(nn.Module):
    """A small network whose classifier is gone."""

    def __init__(self, width=4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer = nn.Sequential(nn.Conv2d(width, 5, 1, bias=False))
        self.fc = nn.Identity()


def weights(seed=0, width=4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(Net(width).state_dict())


STATE = weights()
CLASSIFIER = {"fc.weight": torch.zeros(7, 5), "fc.bias": torch.zeros(7)}


def under(prefix, state=STATE):
    return {prefix + key: value for key, value in state.items()}


def load(path, content=None):
    """The network with the weights of a file that holds `content`, and what was said."""
    if content is not None:
        torch.save(content, path)
    module = Net()
    said = load_weights(module, "net", path, "fc")
    return module.state_dict(), said


def is_loaded(state):
    return all(torch.equal(value, STATE[key]) for key, value in state.items())


HOLDS_ITSELF: dict = {"model": STATE}
HOLDS_ITSELF["again"] = HOLDS_ITSELF
WRAPPED = {
    "itself": (HOLDS_ITSELF, "model"),
    "plain": (STATE, ""),
    "without counters": ({k: v for k, v in STATE.items() if "num_batches" not in k}, ""),
    "another classifier": ({**STATE, **CLASSIFIER}, ""),
    "another head": ({**STATE, "head.0.weight": torch.zeros(3, 5)}, ""),
    "DataParallel": (under("module."), "module"),
    "compiled": (under("_orig_mod."), "_orig_mod"),
    "both": (under("module._orig_mod.", {**STATE, **CLASSIFIER}), "module._orig_mod"),
    "Lightning": (
        {"epoch": 3, "state_dict": {**under("model."), "criterion.weight": torch.ones(3)}, "optimizer_states": [{}]},
        "state_dict.model",
    ),
    "model": ({"model": STATE, "epoch": 1, "loss": 0.5}, "model"),
    "model_state_dict": ({"model_state_dict": STATE, "optimizer_state_dict": {"state": {}}}, "model_state_dict"),
    "net": ({"net": under("module.")}, "net.module"),
    "backbone": (under("backbone.") | {"neck.weight": torch.ones(2)}, "backbone"),
    "encoder": (under("encoder.0."), "encoder.0"),
    "ema alone": ({"ema": STATE, "model": {"other": torch.ones(2)}}, "ema"),
    "equal twice": ({"model": STATE, "ema": {key: value.clone() for key, value in STATE.items()}}, "model"),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_and_prefixes_are_taken_off_and_said(tmp_path, name):
    content, where = WRAPPED[name]
    state, said = load(tmp_path / "w.pth", content)
    assert is_loaded(state)
    assert said == (f'{tmp_path}/w.pth: its weights are below "{where}"' if where else "")


def test_safetensors_are_read_whatever_they_are_called(tmp_path):
    for name in ("model.safetensors", "model.bin"):
        save_file(under("module."), tmp_path / name)
        state, said = load(tmp_path / name)
        assert is_loaded(state)
        assert '"module"' in said
    (tmp_path / "model.bin").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-40])
    refuses(r"model\.bin is a damaged safetensors file", load, tmp_path / "model.bin")


@pytest.mark.parametrize("old", [False, True])
def test_other_float_types_are_taken_as_float32_and_said(tmp_path, old):
    half = {key: value.half() if value.is_floating_point() else value for key, value in STATE.items()}
    torch.save(half, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    state, said = load(tmp_path / "w.pth")
    assert state["conv1.weight"].dtype == torch.float32
    assert torch.equal(state["conv1.weight"], STATE["conv1.weight"].half().float())
    assert said.endswith("float16 is taken as float32")


class Dangerous:
    def __reduce__(self):
        return print, ("this must not run",)


def changed(key, value):
    return {**STATE, key: value}


def cut(path):
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:1000])


QUANTISED = torch.quantize_per_tensor(STATE["conv1.weight"], 0.1, 0, torch.qint8)


ODD = {
    "missing": (None, "there are no weights at"),
    "a folder": (lambda path: path.mkdir(), "there are no weights at"),
    "empty": (b"", "is empty"),
    "junk": (b"not weights", "is not a readable state dict, or is truncated"),
    "web page": (b"\n<!DOCTYPE html><html>404</html>", "is a web page, not weights"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 46\n", "git lfs pull"),
    "cut": (cut, "is truncated or damaged"),
    "TorchScript": (lambda path: torch.jit.script(nn.Linear(2, 2)).save(path), "is a TorchScript program, not"),
    "pickled model": (nn.Linear(2, 2), r"Python objects \(torch\.nn\.modules\.linear\.Linear\)"),
    "danger": (Dangerous(), r"Python objects \((builtins\.)?print\)"),
    "namespace": ({"state_dict": STATE, "args": argparse.Namespace(lr=1)}, r"Python objects \(argparse\.Namespace\)"),
    "plain pickle": (pickle.dumps(Dangerous()), "is not a readable state dict|Python objects"),
    "a list": ([1, 2], "is not a state dict"),
    "no tensors": ({"a": 1}, "is not a state dict"),
    "keys": ({1: torch.ones(2), "conv1.weight": torch.ones(2)}, "its key 1 is no text"),
    "two sets": ({"teacher": STATE, "student": weights(1)}, r'more than one set .* fits net \("teacher", "student"\)'),
    "wider": (weights(width=8), r"another architecture than net .*expected \(4,.*found \(8,"),
    "deeper": (changed("layer.1.weight", torch.ones(2)), r'another architecture .*"layer\.1\.weight": expected none'),
    "shallower": ({k: v for k, v in STATE.items() if "layer" not in k}, r'"layer\.0\.weight".*found none'),
    "not finite": (changed("bn1.weight", torch.full((4,), torch.nan)), '"bn1.weight" has values that are not finite'),
    "meta": (changed("bn1.weight", torch.ones(4, device="meta")), '"bn1.weight" has a shape but no values'),
    "sparse": (changed("bn1.weight", torch.ones(4).to_sparse()), '"bn1.weight" is sparse'),
    "quantised": (changed("conv1.weight", QUANTISED), '"conv1.weight" is quantised'),
    "integers": (changed("bn1.weight", torch.ones(4, dtype=torch.int8)), '"bn1.weight" is quantised or of integers'),
}


@pytest.mark.parametrize("name", ODD)
def test_everything_else_gets_a_sentence_and_nothing_runs(tmp_path, capsys, name):
    content, message = ODD[name]
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif callable(content) and not isinstance(content, nn.Module):
        content(path)
    elif content is not None:
        torch.save(content, path)
    said = refuses(message, load, path)
    assert str(path) in said
    assert "weights_only" not in said
    assert "must not run" not in capsys.readouterr().out


def test_an_archive_that_would_grow_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(extract.weights, "SLACK", 1000)
    plain = io.BytesIO()
    torch.save({"a": torch.zeros(100_000)}, plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in source.infolist():
            bomb.writestr(entry.filename, source.read(entry))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpacked"))
    refuses(r"bomb\.pth would grow from 0 to 0 MB when it is unpacked", load, tmp_path / "bomb.pth")
