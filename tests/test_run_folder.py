import json

import pytest
from fabricate import make_report, refuses

from train.run_folder import RunFolder

REPORT = make_report([True, False])
FILES = ("config.toml", "metrics.jsonl", "checkpoint.pt", "curves.png")


@pytest.fixture
def run(tmp_path):
    """A complete run, as far as its folder can tell."""
    run = RunFolder(tmp_path)
    for name in FILES:
        (tmp_path / name).write_text(name)
    run.report.write_text(REPORT.to_json())
    run.mark_done()
    return run


def test_a_run_is_done_when_it_says_so_and_declares_what_is_there_and_nothing_else(run):
    (run.path / "notes.txt").write_text("mine")
    assert run.is_done
    assert set(json.loads(run.done.read_text())["sha256"]) == {*FILES, "report.json"}
    assert run.read_finished_report().to_json() == REPORT.to_json()
    run.done.unlink()
    assert not run.is_done


@pytest.mark.parametrize("name", [*FILES, "report.json"])
def test_a_changed_file_is_named(run, name):
    (run.path / name).write_text('{"top1": 0.9}')
    said = refuses(rf"{name} is not what DONE declares", run.read_finished_report)
    assert ("move it away" in said) == (name != "checkpoint.pt")
    assert "delete" not in said


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "report.json", "curves.png"])
def test_a_missing_file_can_be_made_again(run, name):
    (run.path / name).unlink()
    assert run.find_missing() == [name]
    refuses(rf"no {name}: run the training command again", run.read_finished_report)


def test_a_missing_checkpoint_cannot(run):
    run.checkpoint.unlink()
    refuses(r"DONE but no checkpoint\.pt: its head is lost", run.find_missing)


@pytest.mark.parametrize(
    "text",
    ["", "[" * 9999, "{", "3", "[]", "{}", '{"sha256": 1}', '{"sha256": {}}', '{"sha256": {"../x": "0"}}', "\udcff"],
)
def test_a_damaged_done_is_named(run, text):
    run.done.write_bytes(text.encode(errors="surrogateescape"))
    refuses("DONE is damaged: remove this file", run.read_finished_report)


def test_metrics_are_one_record_an_epoch_and_stay_where_new_ones_cannot_be_written(tmp_path):
    run = RunFolder(tmp_path)
    run.write_metrics([{"epoch": 1}])
    run.write_metrics([{"epoch": 1}, {"epoch": 2}])
    with pytest.raises(TypeError):
        run.write_metrics([{"epoch": object()}])
    assert run.metrics.read_text() == '{"epoch": 1}\n{"epoch": 2}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
