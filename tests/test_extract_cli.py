import csv
import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest
import torch
from click.testing import CliRunner
from mutate import resealed
from PIL import Image

from common.errors import UserError
from common.store import FeatureStore
from common.store_partial import partial_folder, read_progress
from common.synthetic import make_images, make_store
from extract.cli import main
from train.config import Config
from train.task import prepare

SMALL = ["--weights", "random", "--image-size", "32"]


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def features(root, store, *options, code=0):
    return run("features", "--dataset", "imagefolder", "--root", root, "--store", store, *SMALL, *options, code=code)


@pytest.fixture
def root(tmp_path):
    return make_images(tmp_path / "images")


def test_it_prints_the_path_of_the_store_alone_on_stdout(root, tmp_path):
    result = features(root, tmp_path / "s.h5")
    assert result.stdout == f"{tmp_path / 's.h5'}\n"
    assert "RANDOM weights (seed 0)" in result.stderr


def test_the_second_call_is_up_to_date_without_torch(root, tmp_path):
    features(root, tmp_path / "s.h5")
    before = (tmp_path / "s.h5").stat()
    code = "import sys; from extract.cli import main; main(standalone_mode=False); print('torch' in sys.modules)"
    command = ["features", "--dataset", "imagefolder", "--root", root, "--store", tmp_path / "s.h5", *SMALL]
    result = subprocess.run([sys.executable, "-c", code, *map(str, command)], capture_output=True, text=True)
    assert "up to date" in result.stderr
    assert result.stdout.split() == [str(tmp_path / "s.h5"), "False"]
    assert (tmp_path / "s.h5").stat().st_mtime_ns == before.st_mtime_ns


def test_the_name_of_a_store_tells_what_was_asked_for(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("features", "--dataset", "imagefolder", "--root", root, *SMALL, "--views", "plain,mirror")
    assert result.stdout.strip() == "data/features/imagefolder-images-resnet18-random0-32-plain+mirror.h5"


def test_other_layers_are_cached_behind_the_last(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["features", "--dataset", "imagefolder", "--root", root, *SMALL, "--engine", "torch"]
    plain, both = (
        FeatureStore.open(run(*command, "--layers", text).stdout.strip()) for text in ("last", "last, layer3")
    )
    assert plain.path.name == "imagefolder-images-resnet18-random0-32.h5"
    assert both.path.name == "imagefolder-images-resnet18-random0-32-last+layer3.h5"
    assert both.layers == {"last": 512, "layer3": 256}
    assert both.identity["backbone"] == {
        "name": "resnet18",
        "feature_dim": 768,
        "layers": [["last", 512], ["layer3", 256]],
    }
    assert both.features.shape == (1, 66, 768)
    error = abs(both.features[..., :512] - plain.features).max()
    assert error < 1e-5 * abs(plain.features).max()
    assert "up to date" in run(*command, "--layers", "last,layer3").stderr
    other = run(*command, "--store", plain.path, "--layers", "last,layer3", code=2)
    assert "holds features of something else (other backbone)" in other.output


def test_a_store_of_the_last_layer_is_what_it_was_before_there_were_layers(root, tmp_path):
    features(root, tmp_path / "s.h5")
    store = FeatureStore.open(tmp_path / "s.h5")
    assert store.identity["backbone"] == {"name": "resnet18", "feature_dim": 512}
    assert "layers" not in store.header["provenance"]["request"]
    assert store.layers == {"last": 512}


def test_every_option_reaches_the_store(root, tmp_path):
    weights = tmp_path / "w.pth"
    import torchvision

    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), weights)
    options = ["--backbone", "mobilenet_v3_small", "--weights", weights, "--views", "plain,mirror", "--image-size", 40]
    options += ["--precision", "bfloat16", "--batch-size", 9, "--device", "cpu", "--engine", "torch"]
    features(root, tmp_path / "s.h5", *options)
    header = FeatureStore.open(tmp_path / "s.h5").header
    identity, provenance = header["identity"], header["provenance"]
    assert identity["backbone"] == {"name": "mobilenet_v3_small", "feature_dim": 1024}
    assert identity["weights"] == {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest(), "random_seed": None}
    assert identity["preprocessing"]["image_size"] == 40
    assert identity["preprocessing"]["views"] == ["plain", "mirror"]
    assert provenance["request"]["precision"] == "bfloat16"
    assert identity["precision"] == ("bfloat16" if "bfloat16" in provenance["engine"] else "float32")
    assert provenance["batch_size"] == 9
    assert provenance["device"] == "cpu"
    assert provenance["engine"].startswith("torch ")
    assert provenance["data_set"] == str(root)
    features(root, tmp_path / "seed.h5", "--weights-seed", 7)
    assert FeatureStore.open(tmp_path / "seed.h5").identity["weights"]["random_seed"] == 7


def test_a_store_of_something_else_is_kept_unless_it_may_be_overwritten(root, tmp_path):
    store = tmp_path / "s.h5"
    features(root, store)
    content = store.read_bytes()
    refused = features(root, store, "--weights-seed", 1, code=2)
    assert "holds features of something else (other weights)" in refused.output
    assert store.read_bytes() == content
    features(root, store, "--weights-seed", 1, "--overwrite")
    assert FeatureStore.open(store).identity["weights"]["random_seed"] == 1


def test_files_that_were_only_touched_are_recognised_by_their_pixels_once(root, tmp_path):
    features(root, tmp_path / "s.h5")
    before = FeatureStore.open(tmp_path / "s.h5")
    (root / "train/class0/000.png").touch()
    assert "their pixels are the same" in features(root, tmp_path / "s.h5").stderr
    assert "their pixels" not in features(root, tmp_path / "s.h5").stderr
    after = FeatureStore.open(tmp_path / "s.h5")
    after.verify()
    assert after.identity == before.identity
    changed = {key for key, value in after.header["provenance"].items() if before.header["provenance"][key] != value}
    assert changed == {"request"}


def test_files_that_were_moved_have_their_new_names_in_the_store(root, tmp_path):
    features(root, tmp_path / "s.h5")
    (root / "train/class1/003.png").rename(root / "train/class1/003b.png")
    assert "their pixels are the same" in features(root, tmp_path / "s.h5").stderr
    assert FeatureStore.open(tmp_path / "s.h5").names([15])[0] == "train/class1/003b.png"


def test_damage_is_not_sealed_again_when_files_were_touched(root, tmp_path):
    features(root, tmp_path / "s.h5")
    content = bytearray((tmp_path / "s.h5").read_bytes())
    content[FeatureStore.open(tmp_path / "s.h5").places["features"].offset] ^= 1
    (tmp_path / "s.h5").write_bytes(content)
    (root / "train/class0/000.png").touch()
    assert "block 0 of /features" in features(root, tmp_path / "s.h5", code=2).output
    assert (tmp_path / "s.h5").read_bytes() == content


def test_a_store_that_cannot_be_renewed_is_used(root, tmp_path, monkeypatch):
    features(root, tmp_path / "s.h5")
    before = (tmp_path / "s.h5").read_bytes()
    (root / "train/class0/000.png").touch()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("common.store_writer.write_all", full)
    result = features(root, tmp_path / "s.h5")
    assert "their pixels are the same; this is not noted in it: no space left" in result.stderr
    assert (tmp_path / "s.h5").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "s.h5"]


def test_a_store_of_version_1_is_made_again_when_that_is_said(root, tmp_path):
    store = tmp_path / "s.h5"
    with h5py.File(store, "w", libver=("v108", "v108")) as file:
        file.attrs["format"] = "set-anomaly/feature-store"
    before = store.read_bytes()
    for command in ("status", "verify", "names", "info"):
        assert "was made by an older version of this project: extract it again" in run(command, store, code=2).output
    result = features(root, store, code=2)
    assert "extract it again (--overwrite replaces it)" in result.output
    assert store.read_bytes() == before
    features(root, store, "--overwrite")
    FeatureStore.open(store).verify()


def test_which_row_is_which_file(root, tmp_path):
    (root / "train/class1/003.png").rename(root / "train/class1/a, b.png")
    features(root, tmp_path / "s.h5")
    lines = list(csv.DictReader(run("names", tmp_path / "s.h5").stdout.splitlines()))
    assert len(lines) == 66
    assert lines[0] == {"row": "0", "split": "train", "class": "class0", "file": "train/class0/000.png"}
    assert lines[23]["file"] == "train/class1/a, b.png"
    assert lines[65] == {"row": "65", "split": "test", "class": "class2", "file": "test/class2/009.png"}


def test_work_on_images_outlives_the_repair_of_one(root, tmp_path):
    bad, store = root / "test/class2/009.png", tmp_path / "s.h5"
    sound = bad.read_bytes()
    features(root, tmp_path / "whole.h5", "--batch-size", 8)
    bad.write_bytes(b"junk")
    assert "009.png" in features(root, store, "--batch-size", 8, code=2).output
    assert "64 of 66" in run_status(store)
    bad.write_bytes(sound)
    (root / "train/class0/000.png").touch()
    result = features(root, store, "--batch-size", 8)
    assert "64 of 66 images done" in result.stderr
    assert re.search(r"\n2 images in", result.stderr)
    whole, made = FeatureStore.open(tmp_path / "whole.h5"), FeatureStore.open(store)
    assert (whole.features == made.features).all()
    assert made.identity == whole.identity
    assert "up to date" in features(root, store).stderr


def test_a_batch_with_a_changed_image_is_made_again(root, tmp_path):
    bad, store = root / "test/class2/009.png", tmp_path / "s.h5"
    sound = bad.read_bytes()
    bad.write_bytes(b"junk")
    features(root, store, "--batch-size", 8, code=2)
    bad.write_bytes(sound)
    (root / "train/class0/000.png").write_bytes((root / "train/class0/001.png").read_bytes())
    result = features(root, store, "--batch-size", 8)
    assert "56 of 66 images done; 1 batch(es) are made again" in result.stderr
    features(root, tmp_path / "whole.h5", "--batch-size", 8)
    assert store.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_another_number_of_images_begins_anew_and_says_so(root, tmp_path):
    bad, store = root / "test/class2/009.png", tmp_path / "s.h5"
    sound = bad.read_bytes()
    bad.write_bytes(b"junk")
    features(root, store, "--batch-size", 8, code=2)
    bad.write_bytes(sound)
    (root / "train/class0/000.png").unlink()
    assert "from zero: the unfinished extraction had another n" in features(root, store, "--batch-size", 8).stderr


def test_what_was_asked_for_in_bfloat16_is_up_to_date_whatever_the_machine_made_of_it(root, tmp_path, monkeypatch):
    from extract import engines

    monkeypatch.setattr(engines, "fast_bfloat16", lambda device: False)
    asked = ["--precision", "bfloat16", "--engine", "torch"]
    features(root, tmp_path / "s.h5", *asked)
    assert FeatureStore.open(tmp_path / "s.h5").identity["precision"] == "float32"
    assert "up to date" in features(root, tmp_path / "s.h5", *asked).stderr
    (root / "train/class0/000.png").touch()
    assert "their pixels are the same" in features(root, tmp_path / "s.h5", *asked).stderr


def test_a_changed_image_is_noticed(root, tmp_path):
    features(root, tmp_path / "s.h5")
    (root / "train/class0/000.png").write_bytes((root / "train/class0/001.png").read_bytes())
    assert "0 new, 1 gone" in features(root, tmp_path / "s.h5", code=2).output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "imagefolder"], "needs --root"),
        (["--dataset", "imagefolder", "--root", "nowhere"], "there is no image folder at nowhere"),
        (["--dataset", "digits", "--backbone", "resnet81"], "did you mean"),
        (["--dataset", "digits", "--views", "mirror"], 'must begin with "plain"'),
        (["--dataset", "digits", "--views", "plain,zom"], 'unknown view "zom": did you mean "zoom"'),
        (["--dataset", "digits", "--layers", "layer3,last"], 'must begin with "last"'),
        (["--dataset", "digits", "--layers", "last,layr3"], 'unknown layer of resnet18 "layr3": did you mean "layer3"'),
        (["--dataset", "digits", "--layers", "last,fc"], "are maps of pixels, or tokens: choose others"),
        (["--dataset", "digits", "--weights", "missing.pth"], "there are no weights at missing.pth"),
        (["--dataset", "digits", "--device", "cuda:77"], 'there is no device "cuda:77"'),
        (["--dataset", "digits", "--store", "/proc/x/s.h5"], "cannot write /proc/x"),
        (["--dataset", "imagefoldr"], 'unknown data set "imagefoldr": did you mean "imagefolder"'),
    ],
)
def test_a_mistake_gets_one_sentence(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert message in run("features", *SMALL, *options, code=2).output
    assert list(tmp_path.rglob("*.h5")) == []


def test_a_file_that_is_no_store_is_not_replaced(root, tmp_path):
    (tmp_path / "s.h5").write_text("precious")
    assert "not an HDF5 file" in features(root, tmp_path / "s.h5", code=2).output
    assert (tmp_path / "s.h5").read_text() == "precious"


def status(path):
    return run_status(path).partition(":")[0]


def run_status(path):
    result = CliRunner().invoke(main, ["status", str(path)])
    assert result.exit_code == {"complete": 0, "damaged": 2}.get(result.output.partition(":")[0], 1)
    return result.output


def test_status_has_a_word_for_every_file(tmp_path):
    assert status(tmp_path / "s.h5") == "missing"
    store = make_store(tmp_path / "s.h5")
    assert status(store.path) == "complete"
    (tmp_path / "text.h5").write_text("hello")
    assert status(tmp_path / "text.h5") == "foreign"
    (tmp_path / "newer.h5").write_bytes(resealed(store.path.read_bytes(), facts=lambda facts: {"version": 9}))
    assert status(tmp_path / "newer.h5") == "newer"
    (tmp_path / "loop.h5").symlink_to("loop.h5")
    assert status(tmp_path / "loop.h5") == "unreadable"
    os.truncate(store.path, store.path.stat().st_size // 2)
    assert status(store.path) == "damaged"


def test_info_is_json_and_verify_reads_every_byte(tmp_path):
    store = make_store(tmp_path / "s.h5")
    info = json.loads(run("info", store.path).stdout)
    assert info["identity"] == store.identity
    assert info["arrays"]["features"] == "<f4 [1, 180, 16]"
    assert run("verify", store.path).stdout.startswith("sound: ")
    content = bytearray(store.path.read_bytes())
    content[store.places["thumbnails"].offset] ^= 1
    store.path.write_bytes(content)
    assert "block 0 of /thumbnails" in run("verify", store.path, code=2).output


def test_kill_9_at_any_moment_loses_nothing(tmp_path):
    root = make_images(tmp_path / "images", classes=4, train=60, test=40)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(store):
        options = ["--dataset", "imagefolder", "--root", root, "--store", store, *SMALL, "--batch-size", 4]
        return [sys.executable, "-m", "extract", "features", *map(str, options)]

    killed, whole = tmp_path / "killed.h5", tmp_path / "whole.h5"
    for rows in (4, 100, 300):
        process = subprocess.Popen(command(killed), env=environment, stderr=subprocess.DEVNULL)
        wait_for_rows(killed, rows, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert status(killed) == "partial"
        assert read_progress(killed)[0] >= rows
    for store in (killed, whole):
        subprocess.run(command(store), env=environment, check=True, capture_output=True)
    assert killed.read_bytes() == whole.read_bytes()
    assert not partial_folder(killed).exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_extraction_keeps_its_batches_and_says_so(tmp_path, number, code):
    root, store = make_images(tmp_path / "images", classes=4, train=60, test=40), tmp_path / "s.h5"
    command = [sys.executable, "-m", "extract", "features", "--dataset", "imagefolder", "--root", str(root)]
    command += ["--store", str(store), *SMALL, "--batch-size", "4", "--engine", "torch"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_rows(store, 8, process)
    process.send_signal(number)
    output, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert output == ""
    kept, n = read_progress(store)
    assert 8 <= kept < n == 400
    assert (
        error.strip().splitlines()[-1]
        == f"stopped: {kept} of 400 images are saved; run the same command again to resume"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [".s.h5.partial", "images"]


def wait_for_rows(store: Path, rows: int, process):
    deadline = time.monotonic() + 300
    while (read_progress(store) or (0, 0))[0] < rows:
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def own(tmp_path, dataset, root, *options, code=0):
    return run(
        "features", "--dataset", dataset, "--root", root, "--store", tmp_path / "s.h5", *SMALL, *options, code=code
    )


def spoil(root, *names):
    for name in names:
        (root / name).write_bytes(b"junk")


BAD = ("train/class1/007.png", "train/class2/000.png", "test/class0/009.png")


def test_one_run_finds_all_bad_files_and_the_next_goes_on(root, tmp_path):
    expected = {name: (root / name).read_bytes() for name in BAD}
    spoil(root, *BAD)
    result = own(tmp_path, "imagefolder", root, "--batch-size", 4, code=2)
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("Error: 3 of 66 images cannot be read: ")
    for name in BAD:
        assert name in last
    assert "--on-error skip" in last
    assert not (tmp_path / "s.h5").exists()
    assert status(tmp_path / "s.h5") == "partial"
    for name, content in expected.items():
        (root / name).write_bytes(content)
    assert "54 of 66 images done" in own(tmp_path, "imagefolder", root, "--batch-size", 4).stderr
    assert len(FeatureStore.open(tmp_path / "s.h5").labels) == 66


def test_bad_files_are_skipped_on_request_and_stand_in_the_store(root, tmp_path):
    clean = make_images(tmp_path / "clean")
    for name in BAD:
        (clean / name).unlink()
    features(clean, tmp_path / "clean.h5", "--engine", "torch")
    spoil(root, *BAD)
    result = own(tmp_path, "imagefolder", root, "--engine", "torch", "--on-error", "skip")
    assert "3 images were skipped" in result.stderr
    store, expected = FeatureStore.open(tmp_path / "s.h5"), FeatureStore.open(tmp_path / "clean.h5")
    assert store.identity == expected.identity
    assert store.names(range(63)) == expected.names(range(63))
    assert [name for name, _ in store.header["provenance"]["skipped"]] == list(BAD)
    assert abs(store.features - expected.features).max() < 1e-5 * abs(expected.features).max()
    assert "up to date" in own(tmp_path, "imagefolder", root, "--on-error", "skip").stderr
    (root / "train/class0/000.png").touch()
    assert "their pixels are the same" in own(tmp_path, "imagefolder", root, "--on-error", "skip").stderr


def test_a_class_of_which_nothing_is_left_can_be_audited_but_not_trained_on(root, tmp_path):
    spoil(root, *(f"test/class1/{i:03d}.png" for i in range(10)))
    own(tmp_path, "imagefolder", root, "--on-error", "skip")
    store = FeatureStore.open(tmp_path / "s.h5")
    assert len(store.labels) == 56
    with pytest.raises(UserError, match='has no image of class "class1" in its test split: add images'):
        prepare(store, Config().data)


def test_what_is_left_out_is_counted_in_a_line_and_listed_on_request(root, tmp_path):
    for name in ("notes.txt", "more.txt", "._000.png"):
        (root / "train/class0" / name).write_text("x")
    result = own(tmp_path, "imagefolder", root, "--list-left-out")
    assert "3 files left out: 2 .txt (no image format), 1 hidden" in result.stderr
    assert "left out: train/class0/notes.txt: .txt (no image format)" in result.stderr
    provenance = FeatureStore.open(tmp_path / "s.h5").header["provenance"]
    assert provenance["left_out"] == {".txt (no image format)": 2, "hidden": 1}


def test_images_that_are_the_same_after_decoding_are_counted(root, tmp_path):
    for i in range(1, 6):
        (root / f"train/class0/{i:03d}.png").write_bytes((root / "train/class0/000.png").read_bytes())
    assert "5 of 66 images have the same pixels as another one" in own(tmp_path, "imagefolder", root).stderr


def test_a_folder_without_labels_and_a_small_one_make_sound_stores(tmp_path):
    root = make_images(tmp_path / "few", classes=2, train=3, test=3)
    own(tmp_path, "folder", root)
    store = FeatureStore.open(tmp_path / "s.h5")
    store.verify()
    assert (store.class_names, store.labels.tolist()) == (["unlabelled"], [0] * 12)
    assert store.names([0])[0] == "test/class0/000.png"
    result = own(tmp_path, "folder", root, "--precision", "bfloat16", "--overwrite")
    assert "engine: " in result.stderr
    own(tmp_path, "imagefolder", root, "--overwrite")
    assert len(FeatureStore.open(tmp_path / "s.h5").labels) == 12


def test_a_split_that_is_drawn_stands_in_the_store(tmp_path, monkeypatch):
    root = make_images(tmp_path / "images", train=10) / "train"
    own(tmp_path, "imagefolder", root, "--test-fraction", "0.3")
    provenance = FeatureStore.open(tmp_path / "s.h5").header["provenance"]
    assert provenance["request"]["test_fraction"] == 0.3
    assert "30% of each class" in provenance["layout"][0]
    other = own(tmp_path, "imagefolder", root, code=2)
    assert "other names, order, labels or split of the same images" in other.output


def test_a_fixed_store_says_which_images_have_changed(tmp_path):
    root = make_images(tmp_path / "images", train=10)
    own(tmp_path, "imagefolder", root)
    before = (tmp_path / "s.h5").read_bytes()
    first = sorted((root / "train").rglob("*.png"))[0]
    Image.new("RGB", (32, 32), "red").save(first.with_name("new.png"))
    first.unlink()
    Image.new("RGB", (32, 32), "blue").save(first.with_name("newer.png"))
    result = own(tmp_path, "imagefolder", root, code=2)
    assert "then," in result.output and "2 new, 1 gone): give --overwrite" in result.output
    assert (tmp_path / "s.h5").read_bytes() == before


def test_a_table_makes_a_store(tmp_path):
    make_images(tmp_path, classes=2)
    rows = [f"{f.relative_to(tmp_path)},{f.parent.name},{f.parent.parent.name}" for f in tmp_path.rglob("*.png")]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows]))
    own(tmp_path, "csv", tmp_path / "t.csv")
    features(tmp_path, tmp_path / "folder.h5")
    assert FeatureStore.open(tmp_path / "s.h5").identity == FeatureStore.open(tmp_path / "folder.h5").identity


def test_a_store_made_by_an_older_rule_is_compared_once_not_believed(root, tmp_path, monkeypatch):
    monkeypatch.setattr("extract.sources.RULE", 1)
    own(tmp_path, "imagefolder", root)
    monkeypatch.undo()
    assert "their pixels are the same" in own(tmp_path, "imagefolder", root).stderr
    assert "their pixels" not in own(tmp_path, "imagefolder", root).stderr


def test_a_model_of_timm_with_its_own_preprocessing(root, tmp_path):
    pytest.importorskip("timm", reason="the extra `timm` is not installed")
    own(tmp_path, "imagefolder", root, "--backbone", "timm:resnet18.a1_in1k")
    identity = FeatureStore.open(tmp_path / "s.h5").identity
    assert identity["backbone"] == {"name": "timm:resnet18.a1_in1k", "feature_dim": 512}
    assert identity["preprocessing"]["interpolation"] == "bicubic, antialiased"
    assert identity["preprocessing"]["resize"] == 33


def test_what_weights_were_wrapped_in_is_said(root, tmp_path):
    import torchvision

    torch.save({"state_dict": torchvision.models.resnet18(num_classes=5).state_dict()}, tmp_path / "w.pth")
    result = own(tmp_path, "imagefolder", root, "--weights", tmp_path / "w.pth")
    assert f'{tmp_path}/w.pth: its weights are below "state_dict"' in result.stderr


def test_help_answers_without_torch():
    code = "import sys; from extract.cli import main; main(['features', '--help'], standalone_mode=False)"
    code += "; print([name for name in ('torch', 'torchvision', 'h5py', 'sklearn') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "imagefolder, folder, csv" in result.stdout
