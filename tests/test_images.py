"""Each encoding of one picture gives the pixels of the plain one: the stated rule, on fabricated files."""

import io
import struct
import zlib

import numpy as np
import pytest
from fabricate import smooth
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from common.images import UnreadableImage, image_suffixes, read_image, why_no_image

GENERATOR = np.random.default_rng(0)
GREY = np.add.outer(np.arange(24) * 5, np.arange(32) * 4).astype(np.uint8)
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], -1)
HOLE = np.zeros(GREY.shape, bool)
HOLE[4:12, 8:20] = True
ON_WHITE = np.where(HOLE[..., None], 255, RGB).astype(np.uint8)


def grey3(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, -1)


def png(path, pixels, *, depth, colour, chunks=()):
    """A PNG of any depth, with extra chunks, written by hand."""
    rows = np.asarray(pixels).reshape(len(pixels), -1)
    if depth == 16:
        data = [row.astype(">u2").tobytes() for row in rows]
    elif depth == 8:
        data = [row.astype(np.uint8).tobytes() for row in rows]
    else:
        bits = (rows[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        data = [np.packbits(row.ravel()).tobytes() for row in bits.astype(np.uint8)]

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", len(pixels[0]), len(pixels), depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in data))
    middle = b"".join(chunk(*extra) for extra in chunks)
    end = chunk(b"IDAT", body) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + end)
    return path


def tiff(path, values, tags=None, **options):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, (kind, value) in (tags or {}).items():
        info.tagtype[tag] = kind
        info[tag] = value
    Image.fromarray(values).save(path, tiffinfo=info, **options)
    return path


SHORT, DOUBLE = 3, 12


@pytest.mark.parametrize(("high", "white"), [(255, 255), (1000, 1023), (4095, 4095), (30000, 65535), (65535, 65535)])
def test_grey_of_16_bits_is_scaled_by_the_bits_that_its_values_need(tmp_path, high, white, capsys, monkeypatch):
    monkeypatch.setattr("common.images._reported", set())
    wide = (GREY.astype(np.int64) * high // GREY.max()).astype(np.uint16)
    expected = grey3((wide.astype(np.int64) * 255 + white // 2) // white)
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(wide).save(tmp_path / "a.tif")
    Image.fromarray(wide.astype(">u2")).save(tmp_path / "big.tif")
    (tmp_path / "a.pgm").write_bytes(b"P5 32 24 65535\n" + wide.astype(">u2").tobytes())
    for name in ("a.png", "a.tif", "big.tif", "a.pgm"):
        assert (read_image(tmp_path / name) == expected).all(), name
    said = capsys.readouterr().err
    assert said.count("scaled by these, such as a.png") == said.count("\n") == (white < 65535)


@pytest.mark.parametrize("colour", [2, 6])
def test_colour_of_16_bits_that_uses_12_of_them_is_refused(tmp_path, colour):
    pixels = np.dstack([RGB, np.full(GREY.shape, 255, np.uint8)])[..., : 3 if colour == 2 else 4].astype(np.uint16)
    assert (read_image(png(tmp_path / "a.png", pixels * 257, depth=16, colour=colour)) == RGB).all()
    pixels[..., :3] *= 16
    with pytest.raises(UnreadableImage, match="need no more than 12; convert it to 8 bits"):
        read_image(png(tmp_path / "b.png", pixels, depth=16, colour=colour))


def test_twelve_bits_are_scaled_as_the_file_declares_and_ink_on_white_paper_is_turned_round(tmp_path):
    twelve = ((GREY.astype(np.int64) * 4095 + 127) // 255).astype(np.uint16)
    declared = tiff(tmp_path / "a.tif", twelve, {281: (SHORT, 4095)})
    assert np.abs(read_image(declared).astype(int) - grey3(GREY)).max() <= 1
    (tmp_path / "a.pgm").write_bytes(b"P5 32 24 4095\n" + twelve.astype(">u2").tobytes())
    assert np.abs(read_image(tmp_path / "a.pgm").astype(int) - grey3(GREY)).max() <= 1
    statistic = tiff(tmp_path / "b.tif", twelve, {281: (SHORT, int(twelve.max()))})
    assert (read_image(statistic) == read_image(declared)).all()
    wide = GREY.astype(np.uint16) * 257
    path = tiff(tmp_path / "a.tif", wide)
    content = bytearray(path.read_bytes())
    tag = content.index(struct.pack("<HHI", 262, SHORT, 1))
    content[tag + 8 : tag + 10] = b"\0\0"
    path.write_bytes(content)
    assert (read_image(path) == grey3(255 - GREY)).all()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_of_unknown_range_are_refused_unless_the_file_declares_one(tmp_path, dtype):
    values = GREY.astype(dtype) * 4
    with pytest.raises(UnreadableImage, match=r"a\.tif .*black and white are not declared; convert it to 8 or 16 bits"):
        read_image(tiff(tmp_path / "a.tif", values))
    path = tiff(tmp_path / "b.tif", values, {340: (DOUBLE, 0.0), 341: (DOUBLE, 1020.0)})
    assert (read_image(path) == grey3(GREY)).all()
    if dtype == np.float32:
        values[3, 3] = np.nan
        with pytest.raises(UnreadableImage, match="not finite"):
            read_image(tiff(tmp_path / "c.tif", values, {340: (DOUBLE, 0.0), 341: (DOUBLE, 255.0)}))


@pytest.mark.parametrize("hidden", [(255, 0, 255), (0, 0, 0), (10, 200, 30)])
@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_what_is_hidden_under_transparent_pixels_is_not_seen(tmp_path, hidden, suffix):
    rgba = np.dstack([np.where(HOLE[..., None], hidden, RGB), np.where(HOLE, 0, 255)]).astype(np.uint8)
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    Image.fromarray(rgba).save(tmp_path / f"a.{suffix}", **options)
    assert (read_image(tmp_path / f"a.{suffix}") == ON_WHITE).all()


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    Image.new("RGBA", (4, 4), (100, 0, 200, 128)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, 0].tolist() == [177, 127, 227]
    Image.new("LA", (4, 4), (100, 0)).save(tmp_path / "b.png")
    assert (read_image(tmp_path / "b.png") == 255).all()


@pytest.mark.parametrize("hidden", [(255, 0, 255), (0, 0, 0)])
@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_transparent_colour_of_a_palette_is_white(tmp_path, hidden, suffix):
    indices = np.where(HOLE, 7, GREY // 64).astype(np.uint8)
    image = Image.fromarray(indices).convert("P")
    palette = np.zeros((256, 3), np.uint8)
    palette[:4] = [[0, 10, 20], [60, 70, 80], [120, 130, 140], [180, 190, 200]]
    palette[7] = hidden
    image.putpalette(palette.tobytes())
    image.putdata(indices.ravel())
    image.save(tmp_path / f"a.{suffix}", transparency=7)
    assert (read_image(tmp_path / f"a.{suffix}") == np.where(HOLE[..., None], 255, palette[indices])).all()


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_white_in_every_depth(tmp_path, depth):
    top = 2**depth - 1
    values = np.where(HOLE, 0, np.maximum(GREY.astype(np.int64) * top // 255, 1))
    path = png(tmp_path / "a.png", values, depth=depth, colour=0, chunks=[(b"tRNS", struct.pack(">H", 0))])
    assert (read_image(path) == grey3(np.where(HOLE, 255, (values * 255 + top // 2) // top))).all()


@pytest.mark.parametrize(("depth", "factor"), [(8, 1), (16, 257)])
def test_a_transparent_rgb_is_white(tmp_path, depth, factor):
    values = np.where(HOLE[..., None], (255, 0, 255), np.minimum(RGB, 254)).astype(np.int64) * factor
    key = struct.pack(">HHH", 255 * factor, 0, 255 * factor)
    path = png(tmp_path / "a.png", values, depth=depth, colour=2, chunks=[(b"tRNS", key)])
    assert (read_image(path) == np.where(HOLE[..., None], 255, np.minimum(RGB, 254))).all()


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, suffix):
    frames = [Image.fromarray(grey3(np.full(GREY.shape, level))) for level in (40, 200)]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert (read_image(tmp_path / f"a.{suffix}") == 40).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_exif_says_which_side_is_up(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if suffix == "webp" else {"quality": 95, "subsampling": 0} if suffix == "jpg" else {}
    Image.fromarray(RGB).save(tmp_path / f"a.{suffix}", exif=exif, **options)
    marked = Image.fromarray(RGB)
    marked.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(marked)).astype(int)
    found = read_image(tmp_path / f"a.{suffix}").astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= (4 if suffix == "jpg" else 0)


def test_broken_exif_does_no_harm(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffjunk")
    assert (read_image(tmp_path / "a.png") == RGB).all()


def swapped_profile():
    """sRGB with red and blue exchanged: whoever uses the profile sees it at once."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", content[128:132])[0]
    for i in range(count):
        entry = 132 + 12 * i
        name = bytes(content[entry : entry + 4])
        content[entry : entry + 4] = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}.get(name, name)
    return bytes(content)


def test_icc_profiles_are_converted_to_srgb(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, profile in (("none", None), ("srgb", srgb), ("broken", b"junk"), ("cut", srgb[:200])):
        Image.fromarray(RGB).save(tmp_path / f"{name}.png", icc_profile=profile)
        assert (read_image(tmp_path / f"{name}.png") == RGB).all(), name
    rgba = np.dstack([RGB, np.where(HOLE, 0, 255).astype(np.uint8)])
    Image.fromarray(RGB).save(tmp_path / "a.png", icc_profile=swapped_profile())
    Image.fromarray(rgba).save(tmp_path / "b.png", icc_profile=swapped_profile())
    swapped = read_image(tmp_path / "a.png")
    assert np.abs(swapped.astype(int) - RGB[..., ::-1]).max() <= 3
    assert (read_image(tmp_path / "b.png") == np.where(HOLE[..., None], 255, swapped)).all()
    Image.fromarray(GREY).save(tmp_path / "grey.png", icc_profile=swapped_profile())  # of other channels: ignored
    assert (read_image(tmp_path / "grey.png") == grey3(GREY)).all()


def test_adobes_inverted_cmyk_and_ycck_are_right(tmp_path):
    cmyk = np.dstack([255 - RGB, np.zeros_like(GREY)])
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - RGB).max() <= 4
    # Adobe writes Y, Cb, Cr of the ink (255 - RGB) and an inverted K; Pillow inverts what it is given
    ycc = np.asarray(Image.fromarray(255 - RGB).convert("YCbCr"))
    content = io.BytesIO()
    inverted = Image.fromarray(255 - np.dstack([ycc, np.full_like(GREY, 255)]), "CMYK")
    inverted.save(content, "JPEG", quality=100, subsampling=0)
    data = bytearray(content.getvalue())
    marker = data.index(b"Adobe")
    data[marker + 11] = 2  # transform: YCCK
    (tmp_path / "b.jpg").write_bytes(data)
    assert np.abs(read_image(tmp_path / "b.jpg").astype(int) - RGB).max() <= 4


@pytest.mark.parametrize("mode", ["1", "P", "L", "LA", "RGBA", "YCbCr", "CMYK", "LAB"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    if mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        srgb = ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(Image.fromarray(RGB), srgb, lab, outputMode="LAB")
    else:
        image = Image.fromarray(RGB).convert(mode)
    image.save(tmp_path / "a.tif")
    found = read_image(tmp_path / "a.tif").astype(int)
    assert (found.shape, found.min() >= 0) == (RGB.shape, True)
    if mode in ("RGBA", "YCbCr", "CMYK", "LAB"):
        assert np.abs(found - RGB).mean() < 4


@pytest.mark.parametrize(
    ("size", "least_side", "decoded"),
    [
        ((800, 1000), None, (800, 1000)),
        ((800, 1000), 401, (800, 1000)),
        ((800, 1000), 400, (400, 500)),
        ((2000, 1600), 100, (250, 200)),
        ((2004, 1600), 100, (501, 400)),
        ((2002, 1600), 100, (1001, 800)),
        ((1001, 800), 100, (1001, 800)),
        ((300, 200), 512, (300, 200)),
    ],
)
def test_a_picture_is_read_at_a_part_of_its_size_that_divides_it_and_keeps_its_shorter_side(
    tmp_path, size, least_side, decoded
):
    smooth(*size).save(tmp_path / "a.jpg", quality=95)
    smooth(*size).save(tmp_path / "a.png")
    path = tmp_path / "a.jpg"
    found = read_image(path, least_side=least_side)
    assert found.shape == (*decoded, 3)
    assert (read_image(path, least_side=least_side, data=path.read_bytes()) == found).all()
    expected = np.asarray(smooth(*size).resize(decoded[::-1], Image.Resampling.BOX))
    assert np.abs(found.astype(int) - expected).mean() < 3
    assert np.abs(read_image(tmp_path / "a.png", least_side=least_side).astype(int) - expected).max() <= 1


def test_a_scaled_jpeg_stands_upright_and_may_be_grey_or_cmyk_or_hold_several_pictures(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    picture = smooth(800, 1200)
    picture.save(tmp_path / "turned.jpg", exif=exif)
    picture.convert("L").save(tmp_path / "grey.jpg")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture.save(tmp_path / "two.mpo", save_all=True, append_images=[smooth(800, 1200, 1)])
    small = np.asarray(picture.resize((300, 200), Image.Resampling.BOX)).astype(int)
    for name, expected in (("turned.jpg", np.rot90(small, -1)), ("cmyk.jpg", small), ("two.mpo", small)):
        found = read_image(tmp_path / name, least_side=200)
        assert found.shape == expected.shape, name
        assert np.abs(found - expected).mean() < 6, name
    assert read_image(tmp_path / "grey.jpg", least_side=200).shape == (200, 300, 3)


def test_an_image_of_too_many_pixels_is_refused_until_the_limit_is_raised(tmp_path, monkeypatch):
    tall = np.tile(RGB, (30, 1, 1))  # of more rows than are copied at once
    Image.fromarray(tall).save(tmp_path / "tall.png")
    assert (read_image(tmp_path / "tall.png") == tall).all()
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match=r"a\.png .*more than 700 pixels; --max-pixels raises"):
        read_image(tmp_path / "a.png", 700)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImage, match="--max-pixels"):
        read_image(tmp_path / "a.png", 150)
    assert (read_image(tmp_path / "a.png", 1000) == RGB).all()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(b""), ""),
        (lambda path: path.write_bytes(b"not an image"), ""),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), ""),
        (lambda path: (path.unlink(), path.symlink_to("gone.png")), "No such file"),
    ],
)
def test_an_unreadable_image_is_named(tmp_path, spoil, reason):
    path = tmp_path / "a.png"
    Image.fromarray(GENERATOR.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(path)
    spoil(path)
    with pytest.raises(UnreadableImage, match=rf"cannot read the image .*a\.png .*{reason}.*repair or remove it"):
        read_image(path)


def test_what_is_an_image_goes_by_what_can_be_decoded():
    assert {".jfif", ".jp2", ".tga", ".pgm", ".png", ".jpg", ".tif", ".webp"} <= image_suffixes()
    assert not {".pdf", ".h5", ".mpg", ".eps", ".txt", ""} & image_suffixes()
    assert why_no_image("a.JPG") == ""
    assert why_no_image("a.txt") == ".txt (no image format)"
    assert why_no_image("README") == "without a suffix"
    if ".heic" not in image_suffixes():
        assert why_no_image("a.HEIC") == ".heic (install pillow-heif)"
