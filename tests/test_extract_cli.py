import csv
import errno
import hashlib
import json
import re
import signal
from functools import partial

import fabricate
import h5py
import pytest
import torch
import torchvision
from click.testing import CliRunner
from damage import resealed
from fabricate import call, fails_with, flip_bit, python, refuses, wait_until
from PIL import Image

import extract.features
from common.store import FeatureStore
from common.store_partial import partial_folder, read_progress
from common.synthetic import make_images, make_store
from extract import engines
from extract.cli import main
from train.config import Config
from train.task import prepare

SMALL = ["--weights", "random", "--image-size", "32"]
IN_EIGHTS = "--batch-size", 8


run = partial(call, main)


def command(root, store, *options, dataset="imagefolder"):
    return ["features", "--dataset", dataset, "--root", root, "--store", store, *SMALL, *options]


def features(root, store, *options, code=0, dataset="imagefolder"):
    return run(*command(root, store, *options, dataset=dataset), code=code)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s.h5"


@pytest.fixture
def store(root, path):
    features(root, path)
    return FeatureStore.open(path)


def touch(root):
    (root / "train/class0/000.png").touch()


def replace_an_image(root):
    (root / "train/class0/000.png").write_bytes((root / "train/class0/001.png").read_bytes())


def test_it_prints_the_path_of_the_store_alone_on_stdout_and_the_second_call_is_up_to_date_without_torch(root, path):
    result = features(root, path)
    assert result.stdout == f"{path}\n"
    assert "RANDOM weights (seed 0)" in result.stderr
    assert "images × 1 view(s) × 512, identity" in result.stderr
    assert "imagefolder, folder, csv" in " ".join(run("features", "--help").stdout.split())
    before = path.stat().st_mtime_ns
    code = "import sys; from extract.cli import main; main(standalone_mode=False); print('torch' in sys.modules)"
    again = python("-c", code, *command(root, path))
    assert "up to date" in again.stderr
    assert (again.stdout.split(), path.stat().st_mtime_ns) == ([str(path), "False"], before)


def test_other_layers_are_cached_behind_the_last(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["features", "--dataset", "imagefolder", "--root", root, *SMALL, "--engine", "torch"]
    plain, both = (FeatureStore.open(run(*asked, "--layers", text).stdout.strip()) for text in ("last", "last, layer3"))
    assert plain.path.name == "imagefolder-images-resnet18-random0-32.h5"
    assert both.path.name == "imagefolder-images-resnet18-random0-32-last+layer3.h5"
    # What there was before there were layers is what it was
    assert plain.identity["backbone"] == {"name": "resnet18", "feature_dim": 512}
    assert "layers" not in plain.header["provenance"]["request"]
    assert (plain.layers, both.layers) == ({"last": 512}, {"last": 512, "layer3": 256})
    layers = [["last", 512], ["layer3", 256]]
    assert both.identity["backbone"] == {"name": "resnet18", "feature_dim": 768, "layers": layers}
    assert both.features.shape == (1, 66, 768)
    assert abs(both.features[..., :512] - plain.features).max() < 1e-5 * abs(plain.features).max()
    assert "up to date" in run(*asked, "--layers", "last,layer3").stderr
    other = run(*asked, "--store", plain.path, "--layers", "last,layer3", code=2)
    assert "holds features of something else (other backbone)" in other.output
    views = run(*asked, "--views", "plain,mirror").stdout
    assert views == "data/features/imagefolder-images-resnet18-random0-32-plain+mirror.h5\n"


def test_every_option_reaches_the_store(root, path, tmp_path):
    weights = tmp_path / "w.pth"
    torch.save({"state_dict": torchvision.models.mobilenet_v3_small().state_dict()}, weights)
    options = ["--backbone", "mobilenet_v3_small", "--weights", weights, "--views", "plain,mirror", "--image-size", 40]
    options += ["--precision", "bfloat16", "--batch-size", 9, "--device", "cpu", "--engine", "torch"]
    assert f'{weights}: its weights are below "state_dict"' in features(root, path, *options).stderr
    header = FeatureStore.open(path).header
    identity, provenance = header["identity"], header["provenance"]
    assert identity["backbone"] == {"name": "mobilenet_v3_small", "feature_dim": 1024}
    assert identity["weights"] == {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest(), "random_seed": None}
    preprocessing = identity["preprocessing"]
    assert (preprocessing["image_size"], preprocessing["views"]) == (40, ["plain", "mirror"])
    assert identity["precision"] == ("bfloat16" if "bfloat16" in provenance["engine"] else "float32")
    assert provenance["request"]["precision"] == "bfloat16"
    assert (provenance["batch_size"], provenance["device"], provenance["data_set"]) == (9, "cpu", str(root))
    assert provenance["engine"].startswith("torch ")


def test_a_store_of_something_else_is_kept_unless_it_may_be_overwritten_and_what_is_none_always(root, store):
    content = store.path.read_bytes()
    refused = features(root, store.path, "--weights-seed", 1, code=2)
    assert "holds features of something else (other weights)" in refused.output
    assert store.path.read_bytes() == content
    features(root, store.path, "--weights-seed", 1, "--overwrite")
    assert FeatureStore.open(store.path).identity["weights"]["random_seed"] == 1
    store.path.write_text("precious")
    assert "not an HDF5 file" in features(root, store.path, code=2).output
    assert store.path.read_text() == "precious"


def test_files_that_were_only_touched_or_moved_are_recognised_by_their_pixels_once(root, store):
    touch(root)
    (root / "train/class1/003.png").rename(root / "train/class1/003b.png")
    assert "their pixels are the same" in features(root, store.path).stderr
    assert "their pixels" not in features(root, store.path).stderr
    after = FeatureStore.open(store.path)
    after.verify()
    assert after.identity == store.identity
    before = store.header["provenance"]
    assert {key for key, value in after.header["provenance"].items() if before[key] != value} == {"request"}
    assert after.names([15])[0] == "train/class1/003b.png"


def test_damage_is_not_sealed_again_when_files_were_touched(root, store):
    flip_bit(store.path, store.places["features"].offset)
    content = store.path.read_bytes()
    touch(root)
    assert "block 0 of /features" in features(root, store.path, code=2).output
    assert store.path.read_bytes() == content


def test_a_store_that_cannot_be_renewed_is_used(root, store, tmp_path, monkeypatch):
    before = store.path.read_bytes()
    touch(root)

    monkeypatch.setattr("common.store_writer.write_all", fails_with(errno.ENOSPC))
    result = features(root, store.path)
    assert "their pixels are the same; this is not noted in it: no space left" in result.stderr
    assert store.path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "s.h5"]


def test_a_store_of_version_1_is_made_again_when_that_is_said(root, path):
    with h5py.File(path, "w", libver=("v108", "v108")) as file:
        file.attrs["format"] = "set-anomaly/feature-store"
    before = path.read_bytes()
    for verb in ("status", "verify", "names", "info"):
        assert "was made by an older version of this project: extract it again" in run(verb, path, code=2).output
    assert "extract it again (--overwrite replaces it)" in features(root, path, code=2).output
    assert path.read_bytes() == before
    features(root, path, "--overwrite")
    FeatureStore.open(path).verify()


def test_which_row_is_which_file(root, path):
    (root / "train/class1/003.png").rename(root / "train/class1/a, b.png")
    features(root, path)
    lines = list(csv.DictReader(run("names", path).stdout.splitlines()))
    assert len(lines) == 66
    assert lines[0] == {"row": "0", "split": "train", "class": "class0", "file": "train/class0/000.png"}
    assert lines[23]["file"] == "train/class1/a, b.png"
    assert lines[65] == {"row": "65", "split": "test", "class": "class2", "file": "test/class2/009.png"}


BAD = ("train/class1/007.png", "train/class2/000.png", "test/class0/009.png")


@pytest.fixture
def repair(root):
    """Spoil three images; a function that makes them what they were."""
    contents = {root / name: (root / name).read_bytes() for name in BAD}
    for file in contents:
        file.write_bytes(b"junk")
    return lambda: [file.write_bytes(content) for file, content in contents.items()]


def test_one_run_finds_all_bad_files_and_the_next_goes_on(root, path, tmp_path, repair):
    last = features(root, path, *IN_EIGHTS, code=2).output.strip().splitlines()[-1]
    assert last.startswith("Error: 3 of 66 images cannot be read: ")
    assert all(name in last for name in (*BAD, "--on-error skip"))
    assert not path.exists()
    assert status(path).startswith("partial: 42 of 66 images")
    repair()
    touch(root)
    result = features(root, path, *IN_EIGHTS)
    assert "42 of 66 images done\n" in result.stderr
    assert re.search(r"\n24 images in", result.stderr)
    features(root, tmp_path / "whole.h5", *IN_EIGHTS)
    assert path.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert "up to date" in features(root, path).stderr


def test_a_batch_with_a_changed_image_is_made_again(root, path, tmp_path, repair):
    features(root, path, *IN_EIGHTS, code=2)
    repair()
    replace_an_image(root)
    assert "34 of 66 images done; 1 batch(es) are made again" in features(root, path, *IN_EIGHTS).stderr
    features(root, tmp_path / "whole.h5", *IN_EIGHTS)
    assert path.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_another_number_of_images_begins_anew_and_says_so(root, path, repair):
    features(root, path, *IN_EIGHTS, code=2)
    repair()
    (root / "train/class0/000.png").unlink()
    assert "from zero: the unfinished extraction had another n" in features(root, path, *IN_EIGHTS).stderr


def test_bad_files_are_skipped_on_request_and_stand_in_the_store(root, path, tmp_path, repair):
    clean = make_images(tmp_path / "clean")
    for name in BAD:
        (clean / name).unlink()
    features(clean, tmp_path / "clean.h5", "--engine", "torch")
    assert "3 images were skipped" in features(root, path, "--engine", "torch", "--on-error", "skip").stderr
    store, expected = FeatureStore.open(path), FeatureStore.open(tmp_path / "clean.h5")
    assert store.identity == expected.identity
    assert store.names(range(63)) == expected.names(range(63))
    assert [name for name, _ in store.header["provenance"]["skipped"]] == list(BAD)
    assert abs(store.features - expected.features).max() < 1e-5 * abs(expected.features).max()
    assert "up to date" in features(root, path, "--on-error", "skip").stderr
    touch(root)
    assert "their pixels are the same" in features(root, path, "--on-error", "skip").stderr


def test_a_class_of_which_nothing_is_left_can_be_audited_but_not_trained_on(root, path):
    for i in range(10):
        (root / f"test/class1/{i:03d}.png").write_bytes(b"junk")
    features(root, path, "--on-error", "skip")
    store = FeatureStore.open(path)
    assert len(store.labels) == 56
    refuses('has no image of class "class1" in its test split: add images', prepare, store, Config().data)


def test_what_was_asked_for_in_bfloat16_is_up_to_date_whatever_the_machine_made_of_it(root, path, monkeypatch):
    monkeypatch.setattr(engines, "fast_bfloat16", lambda device: False)
    asked = ["--precision", "bfloat16", "--engine", "torch"]
    features(root, path, *asked)
    assert FeatureStore.open(path).identity["precision"] == "float32"
    assert "up to date" in features(root, path, *asked).stderr
    touch(root)
    assert "their pixels are the same" in features(root, path, *asked).stderr


def test_changed_images_are_counted_and_the_store_is_kept(root, store):
    before = store.path.read_bytes()
    replace_an_image(root)
    assert "0 new, 1 gone" in features(root, store.path, code=2).output
    Image.new("RGB", (32, 32), "red").save(root / "train/class0/000.png")
    Image.new("RGB", (32, 32), "blue").save(root / "train/class0/more.png")
    assert "66 then, 67 now: 2 new, 1 gone): give --overwrite" in features(root, store.path, code=2).output
    assert store.path.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "imagefolder"], "needs --root"),
        (["--dataset", "imagefolder", "--root", "nowhere"], "there is no image folder at nowhere"),
        (["--dataset", "digits", "--device", "meta"], 'there is no device "meta"'),
        (["--dataset", "digits", "--test-fraction", "nan"], "nan is not a number"),
        (["--dataset", "folder", "--root", ""], "an argument is empty"),
        (["--dataset", "digits", "--store", "/proc/x/s.h5"], "cannot write /proc/x"),
        (["--dataset", "digits", "--cpus-per-worker", "2"], "without --ray"),
        (["--dataset", "digits", "--gpus-per-worker", "1"], "without --ray"),
        (["--dataset", "digits", "--ship-images"], "without --ray"),
        (["--dataset", "imagefoldr"], 'unknown data set "imagefoldr": did you mean "imagefolder"'),
    ],
)
def test_a_mistake_gets_one_sentence(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert message in run("features", *SMALL, *options, code=2).output
    assert list(tmp_path.rglob("*.h5")) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float16"}, "--precision: 'float16' is not one of"),
        ({"on_error": "ignore"}, "--on-error: 'ignore' is not one of"),
        ({"decode": None}, "--decode: 'None' is not one of"),
        ({"test_fraction": 5}, "--test-fraction: 5.0 is not in the range"),
        ({"batch_size": 2.5}, "--batch-size: '2.5' is not"),
        ({"image_size": -4}, "--image-size: -4 is not in the range"),
        ({"views": ["plain", "mirror"]}, "unknown view"),
    ],
)
def test_from_python_an_option_may_be_what_it_may_be_on_the_command_line(tmp_path, options, message):
    options = {"weights": "random", **options}
    refuses(re.escape(message), extract.features.features, tmp_path, tmp_path / "s.h5", **options)
    assert list(tmp_path.iterdir()) == []


def status(path):
    result = CliRunner().invoke(main, ["status", str(path)])
    assert result.exit_code == {"complete": 0, "damaged": 2}.get(result.output.partition(":")[0], 1)
    return result.output


def test_status_has_a_word_for_every_file(tmp_path):
    store = make_store(tmp_path / "complete.h5")
    (tmp_path / "foreign.h5").write_text("hello")
    (tmp_path / "newer.h5").write_bytes(resealed(store.path.read_bytes(), facts=lambda facts: {"version": 9}))
    (tmp_path / "unreadable.h5").symlink_to("unreadable.h5")
    (tmp_path / "damaged.h5").write_bytes(store.path.read_bytes()[: store.path.stat().st_size // 2])
    for word in ("missing", "complete", "foreign", "newer", "unreadable", "damaged"):
        assert status(tmp_path / f"{word}.h5").partition(":")[0] == word


def test_info_is_json_and_verify_reads_every_byte(tmp_path):
    store = make_store(tmp_path / "s.h5")
    info = json.loads(run("info", store.path).stdout)
    assert (info["identity"], info["arrays"]["features"]) == (store.identity, "<f4 [1, 180, 16]")
    assert run("verify", store.path).stdout.startswith("sound: ")
    flip_bit(store.path, store.places["thumbnails"].offset)
    assert "block 0 of /thumbnails" in run("verify", store.path, code=2).output


@pytest.fixture
def begin(tmp_path):
    """Start an extraction of 400 images, and go on when so many rows are written; the process."""
    root = make_images(tmp_path / "images", classes=4, train=60, test=40)

    def start(store, rows):
        process = fabricate.begin("-m", "extract", *command(root, store, "--batch-size", 4, "--engine", "torch"))
        wait_until(lambda: (read_progress(store) or (0, 0))[0] >= rows, process)
        return process

    return start


def test_kill_9_at_any_moment_loses_nothing(path, tmp_path, begin):
    whole = tmp_path / "whole.h5"
    for rows in (4, 100, 300):
        with begin(path, rows) as process:
            process.send_signal(signal.SIGKILL)
        assert status(path).startswith("partial: ")
        assert read_progress(path)[0] >= rows
    for store in (path, whole):
        assert begin(store, 0).communicate()[0] == f"{store}\n"
    assert path.read_bytes() == whole.read_bytes()
    assert not partial_folder(path).exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_extraction_keeps_its_batches_and_says_so(path, tmp_path, begin, number, code):
    process = begin(path, 8)
    process.send_signal(number)
    output, error = process.communicate(timeout=60)
    assert (process.returncode, output) == (code, "")
    kept, n = read_progress(path)
    assert 8 <= kept < n == 400
    # The signal may strike after a batch was noted and before it was counted
    said = [f"stopped: {n} of 400 images are saved; run the same command again to resume" for n in (kept - 4, kept)]
    assert error.strip().splitlines()[-1] in said
    assert sorted(file.name for file in tmp_path.iterdir()) == [".s.h5.partial", "images"]


def test_what_is_left_out_and_what_is_there_twice_is_counted(root, path):
    for name in ("notes.txt", "more.txt", "._000.png"):
        (root / "train/class0" / name).write_text("x")
    for i in range(1, 6):
        (root / f"train/class0/{i:03d}.png").write_bytes((root / "train/class0/000.png").read_bytes())
    result = features(root, path, "--list-left-out")
    assert "3 files left out: 2 .txt (no image format), 1 hidden" in result.stderr
    assert "left out: train/class0/notes.txt: .txt (no image format)" in result.stderr
    assert "5 of 66 images have the same pixels as another one" in result.stderr
    provenance = FeatureStore.open(path).header["provenance"]
    assert provenance["left_out"] == {".txt (no image format)": 2, "hidden": 1}


def test_a_folder_without_labels_and_a_small_one_make_sound_stores(path, tmp_path):
    root = make_images(tmp_path / "few", classes=2, train=3, test=3)
    features(root, path, dataset="folder")
    store = FeatureStore.open(path)
    store.verify()
    assert (store.class_names, store.labels.tolist()) == (["unlabelled"], [0] * 12)
    assert store.names([0])[0] == "test/class0/000.png"
    assert "engine: " in features(root, path, "--precision", "bfloat16", "--overwrite", dataset="folder").stderr
    features(root, path, "--overwrite")
    assert len(FeatureStore.open(path).labels) == 12


def test_a_split_that_is_drawn_stands_in_the_store(root, path):
    features(root / "train", path, "--test-fraction", "0.3")
    provenance = FeatureStore.open(path).header["provenance"]
    assert provenance["request"]["test_fraction"] == 0.3
    assert "30% of each class" in provenance["layout"][0]
    other = features(root / "train", path, code=2)
    assert "other names, order, labels or split of the same images" in other.output


def test_a_table_makes_a_store(root, path, tmp_path):
    rows = [f"{f.relative_to(tmp_path)},{f.parent.name},{f.parent.parent.name}" for f in root.rglob("*.png")]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows]))
    features(tmp_path / "t.csv", path, dataset="csv")
    features(root, tmp_path / "folder.h5")
    assert FeatureStore.open(path).identity == FeatureStore.open(tmp_path / "folder.h5").identity


def test_a_store_made_by_an_older_rule_is_compared_once_not_believed(root, path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("extract.features.RULE", 1)
        features(root, path)
    assert "their pixels are the same" in features(root, path).stderr
    assert "their pixels" not in features(root, path).stderr


def test_a_model_of_timm_with_its_own_preprocessing(root, path):
    pytest.importorskip("timm", reason="the extra `timm` is not installed")
    features(root, path, "--backbone", "timm:resnet18.a1_in1k")
    identity = FeatureStore.open(path).identity
    assert identity["backbone"] == {"name": "timm:resnet18.a1_in1k", "feature_dim": 512}
    assert identity["preprocessing"]["interpolation"] == "bicubic, antialiased"
    assert identity["preprocessing"]["resize"] == 33
