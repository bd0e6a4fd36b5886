import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from fabricate import smooth

from common.images import Files, read_image
from extract.batches import read_batch
from extract.preprocessing import Preprocessing

THREADS = 8


def test_threads_that_meet_a_size_at_the_same_moment_see_what_one_thread_sees():
    generator = np.random.default_rng(0)
    preprocessing, together = Preprocessing(64, ("plain", "zoom")), threading.Barrier(THREADS, timeout=30)
    pictures = [generator.integers(256, size=(*generator.integers(520, 1000, 2), 3), dtype=np.uint8) for _ in range(24)]

    def see(_):
        seen = []
        for picture in pictures:
            together.wait()
            seen.append(preprocessing([picture]))
        return seen

    with ThreadPoolExecutor(THREADS) as pool:
        of_threads = list(pool.map(see, range(THREADS)))
    for number, picture in enumerate(pictures):
        expected = preprocessing([picture])
        assert all(torch.equal(seen[number], expected) for seen in of_threads), picture.shape


@pytest.mark.parametrize("least_side", [None, 150])
def test_a_batch_of_files_of_any_sizes_is_the_same_with_any_number_of_threads(tmp_path, least_side):
    generator = np.random.default_rng(1)
    names = [f"{number}.jpg" for number in range(40)]
    for number, name in enumerate(names):
        height, width = (32, 32) if number % 5 == 0 else generator.integers(40, 700, 2)
        smooth(height, width, number).save(tmp_path / name, quality=80)
    files, preprocessing = Files(tmp_path, least_side=least_side), Preprocessing(64)
    batches = []
    for threads in (1, 2, THREADS, THREADS):
        with ThreadPoolExecutor(threads) as pool:
            batches.append(read_batch(pool, lambda row: files.read(names[row]), range(40), preprocessing)[0])
    for batch in batches[1:]:
        assert torch.equal(batch["images"], batches[0]["images"])
        assert (batch["image_sha256"] == batches[0]["image_sha256"]).all()
        assert (batch["thumbnails"] == batches[0]["thumbnails"]).all()
    alone = preprocessing([read_image(tmp_path / names[7], least_side=least_side)])
    assert torch.equal(batches[0]["images"][:, 7:8], alone)


def test_what_cannot_be_read_is_black_without_a_digest_and_noted(tmp_path):
    smooth(100, 90).save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    files, names, preprocessing = Files(tmp_path), ["a.jpg", "b.jpg"], Preprocessing(32)
    with ThreadPoolExecutor(2) as pool:
        batch, unreadable = read_batch(pool, lambda row: files.read(names[row - 10]), range(10, 12), preprocessing)
    assert list(unreadable) == [11]
    assert batch["image_sha256"].any(1).tolist() == [True, False]
    assert torch.equal(batch["images"][:, 1:], preprocessing([np.zeros((1, 1, 3), np.uint8)]))
