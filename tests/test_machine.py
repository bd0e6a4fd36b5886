import pytest
import torch
from fabricate import refuses

from common import machine
from common.machine import choose_arithmetic, choose_device, fast_bfloat16, hardware, versions

CPU = torch.device("cpu")


def test_auto_takes_the_accelerator_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", ""])
def test_a_device_that_is_not_there_is_one_sentence(name):
    refuses(f'no device "{name}" here .*: use cpu or auto', choose_device, name)


def test_versions_and_hardware_can_be_compared_between_reports():
    assert versions()["torch"] == torch.__version__.partition("+")[0]
    found = hardware(torch.device("cpu"))
    assert found["cpu"]
    assert found["threads"] == torch.get_num_threads()
    assert "gpu" not in found


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_is_taken_where_it_is_allowed_and_faster(monkeypatch, fast):
    monkeypatch.setattr(machine, "fast_bfloat16", lambda device: fast)
    assert choose_arithmetic("float32", CPU) == "float32"
    for precision in ("auto", "bfloat16"):
        assert choose_arithmetic(precision, CPU) == ("bfloat16" if fast else "float32")


@pytest.fixture
def measured(monkeypatch):
    """Let products gain what `gains`, {rows: factor}, says; a list of the rows that were tried."""

    def set_gains(gains):
        tried = []
        monkeypatch.setattr(machine, "_bfloat16_gain", lambda device, rows: tried.append(rows) or gains[rows])
        fast_bfloat16.cache_clear()
        return tried

    yield set_gains
    fast_bfloat16.cache_clear()


def test_bfloat16_is_fast_where_the_largest_product_gains_clearly(measured):
    tried = measured({64: 0.8, 512: 1.1, 2560: 1.3})
    assert fast_bfloat16(CPU)
    assert fast_bfloat16(CPU)
    assert tried == [64, 512, 2560]  # once a process
    measured({64: 3, 512: 2, 2560: 1.1})
    assert not fast_bfloat16(CPU)
    tried = measured({64: 0.02})
    assert not fast_bfloat16(CPU)
    assert tried == [64]  # where a small product is emulated, no large one is tried


@pytest.mark.processor
def test_a_device_without_bfloat16_and_one_that_is_measured(monkeypatch):
    def unknown(device, rows):
        raise RuntimeError("not implemented for 'BFloat16'")

    threads = torch.get_num_threads()
    fast_bfloat16.cache_clear()
    assert fast_bfloat16(CPU) in (True, False)
    assert not fast_bfloat16(torch.device("meta"))  # which holds no numbers; a GPU is measured like a CPU
    fast_bfloat16.cache_clear()
    monkeypatch.setattr(machine, "_bfloat16_gain", unknown)
    assert not fast_bfloat16(CPU)
    assert torch.get_num_threads() == threads
    fast_bfloat16.cache_clear()
