import pytest
import torch

from common.errors import UserError
from common.machine import choose_device, hardware, versions


def test_auto_takes_the_accelerator_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", ""])
def test_a_device_that_is_not_there_is_one_sentence(name):
    with pytest.raises(UserError, match=f'no device "{name}" here .*: use cpu or auto'):
        choose_device(name)


def test_versions_and_hardware_can_be_compared_between_reports():
    assert versions()["torch"] == torch.__version__.partition("+")[0]
    found = hardware(torch.device("cpu"))
    assert found["cpu"]
    assert found["threads"] == torch.get_num_threads()
    assert "gpu" not in found
