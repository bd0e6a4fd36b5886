import json

import pytest

from train.run_folder import RunFolder


def test_a_run_is_done_when_it_says_so(tmp_path):
    run = RunFolder(tmp_path)
    run.write_report({"top1": 0.5})
    assert not run.is_done
    run.mark_done()
    assert run.is_done
    assert run.read_report() == {"top1": 0.5}


def test_metrics_are_one_record_an_epoch(tmp_path):
    run = RunFolder(tmp_path)
    run.write_metrics([{"epoch": 1}])
    run.write_metrics([{"epoch": 1}, {"epoch": 2}])
    assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == [{"epoch": 1}, {"epoch": 2}]


def test_a_record_that_cannot_be_written_leaves_the_old_ones(tmp_path):
    run = RunFolder(tmp_path)
    run.write_metrics([{"epoch": 1}])
    with pytest.raises(TypeError):
        run.write_metrics([{"epoch": object()}])
    assert run.metrics.read_text() == '{"epoch": 1}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
