from dataclasses import replace

import pytest
import torch

from common.config import to_toml
from common.errors import UserError
from train.checkpoint import load_checkpoint, progress_of, save_checkpoint
from train.config import Config
from train.loop import Progress

HEAD = {"weight": torch.arange(3.0)}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, Config(), 16, "a" * 64, Progress([{"epoch": 1}], HEAD, HEAD, {}))
    return path


def test_what_is_saved_comes_back(checkpoint):
    content = load_checkpoint(checkpoint)
    assert content["config"] == to_toml(Config())
    assert content["input_dim"] == 16
    progress = progress_of(checkpoint, Config(), "a" * 64)
    assert progress.history == [{"epoch": 1}]
    torch.testing.assert_close(progress.best, HEAD)


def test_without_a_checkpoint_a_run_begins_anew(tmp_path):
    assert progress_of(tmp_path / "checkpoint.pt", Config(), "a" * 64).history == []


def test_a_run_goes_on_with_its_own_config_and_store_only(checkpoint):
    other = Config(training=replace(Config().training, epochs=7))
    with pytest.raises(UserError, match=r"training\.epochs was 50, now 7"):
        progress_of(checkpoint, other, "a" * 64)
    with pytest.raises(UserError, match="identity aaaaaaaaaaaaaaaa, now bbbbbbbbbbbbbbbb"):
        progress_of(checkpoint, Config(), "b" * 64)


def test_a_run_may_go_on_on_another_device(checkpoint):
    other = Config(training=replace(Config().training, device="cuda"))
    assert progress_of(checkpoint, other, "a" * 64).history == [{"epoch": 1}]


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"not a checkpoint", lambda data: b""]
)
def test_a_damaged_checkpoint_is_one_sentence(checkpoint, damage):
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(UserError, match=r"is not a readable checkpoint .*: delete its run folder"):
        load_checkpoint(checkpoint)


def test_pickled_code_is_not_run(checkpoint):
    class Trap:
        def __reduce__(self):
            return exec, ("raise SystemExit('the trap was sprung')",)

    torch.save({"head": Trap(), "config": ""}, checkpoint)
    with pytest.raises(UserError, match="is not a readable checkpoint"):
        load_checkpoint(checkpoint)
