"""Decoding equals Pillow bit for bit where Pillow is right, sizes need no pixels, and errors name the broken file."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps, PngImagePlugin

from lit_mm.documents.decode import LIMIT_PIXELS, ORIENTATION, PictureError, TooManyPixels, decode, read_header
from lit_mm.documents.files import FilePicture
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.pixels import Normalise, cut_views
from lit_mm.samples.processor import Processor, read
from lit_mm.tiling.anyres import plan_anyres

HEIGHT, WIDTH = 37, 53  # no multiple of a JPEG block


def photo(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Image.Image:
    """A picture of smooth colours with some noise, so that chroma subsampling and all coefficients matter."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height))
    noise = rng.integers(-20, 21, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(smooth).astype(int) + noise, 0, 255).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def ours(data: bytes) -> np.ndarray:
    """Decode to [H, W, 3] and check the size against the header."""
    pixels = decode(data)
    assert pixels.dtype == torch.uint8
    assert tuple(pixels.shape) == (3, *read_header(data))
    return pixels.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [30, 75, 95])
def test_a_jpeg_is_bit_equal_to_pillow(quality, subsampling, progressive):
    data = saved(photo(), "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
    np.testing.assert_array_equal(ours(data), by_pillow(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone_as_pillow_undoes_it(kind, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = saved(photo(), kind, exif=exif)
    np.testing.assert_array_equal(ours(data), by_pillow(data))


def test_a_jpeg_that_lies_on_its_side_is_turned_clockwise():
    """The reference is the definition of orientation 6, not Pillow: the stored left column is the top row."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = Image.new("RGB", (64, 32), "blue")
    stored.paste("red", (0, 0, 16, 32))
    upright = ours(saved(stored, "JPEG", exif=exif))
    assert upright.shape == (64, 32, 3)
    assert (upright[:8].mean((0, 1)) - (254, 0, 0)).max() < 3
    assert (upright[24:].mean((0, 1)) - (0, 0, 254)).max() < 3


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    assert ours(saved(photo(), "JPEG", exif=exif)).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"Exif\x00\x00garbage garbage", b"Exif\x00\x00MM", b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00"]
)
def test_exif_that_cannot_be_parsed_does_not_lose_a_good_picture(kind, exif):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(photo(), kind, exif=exif, **options)
    np.testing.assert_array_equal(ours(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def late_exif_png(orientation: int) -> bytes:
    """A PNG with EXIF after its pixels, which the format allows."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = saved(photo(), "PNG")
    end = data.rindex(b"IEND") - 4
    return data[:end] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\x00\x00")) + data[end:]


def test_exif_behind_the_pixels_of_a_png_is_found():
    data = late_exif_png(6)
    assert read_header(data) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(ours(data), by_pillow(data))


@pytest.mark.parametrize(
    "data", [saved(photo(), "PNG"), late_exif_png(8), saved(photo(), "JPEG"), saved(photo(), "TIFF")]
)
def test_the_header_is_read_without_decoding_a_pixel(data, monkeypatch, tmp_path):
    def refuse(*args: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    monkeypatch.setattr("simplejpeg.decode_jpeg", refuse)
    (tmp_path / "a").write_bytes(data)
    size = read_header(data)
    assert sorted(size) == [HEIGHT, WIDTH]
    assert read_header(tmp_path / "a") == read_header(io.BytesIO(data)) == size
    picture = FilePicture.open(tmp_path / "a")
    assert (picture.height, picture.width) == size


def test_a_picture_goes_to_the_processor_without_pillow_images(monkeypatch, tmp_path):
    (tmp_path / "a.jpg").write_bytes(saved(photo(), "JPEG"))
    picture = FilePicture.open(tmp_path / "a.jpg")
    np.testing.assert_array_equal(np.asarray(picture.read()), read(picture, "a").permute(1, 2, 0))

    def refuse(*args: object) -> None:
        raise AssertionError("a detour through a Pillow image")

    monkeypatch.setattr(FilePicture, "read", refuse)
    assert read(picture, "a").shape == (3, HEIGHT, WIDTH)


# --- at a fraction of the size ------------------------------------------------------------------------------------
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("at_least", "expected"),
    [
        (None, (203, 317)),
        ((203, 317), (203, 317)),
        ((102, 160), (203, 317)),  # a half is 159 wide
        ((102, 159), (102, 159)),
        ((51, 81), (102, 159)),
        ((51, 80), (51, 80)),
        ((26, 80), (51, 80)),
        ((26, 40), (26, 40)),
        ((1, 1), (26, 40)),
    ],
)
def test_a_jpeg_comes_at_the_smallest_fraction_that_will_do(at_least, expected, orientation):
    """`expected` and `at_least` are sizes of the upright image."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    upright = photo(203, 317).filter(ImageFilter.GaussianBlur(6))
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose.ROTATE_90)  # 6: turned to be undone
    data = saved(stored, "JPEG", quality=90, exif=exif)
    pixels = decode(data, at_least=at_least)
    assert tuple(pixels.shape) == (3, *expected)
    shrunk = upright.resize(expected[::-1], Image.Resampling.BICUBIC)
    assert (
        np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - np.asarray(shrunk)).mean() < 8
    )  # of the wrong way round: over 40


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_other_formats_come_whole_whatever_will_do(kind):
    data = saved(photo(80, 96), kind)
    np.testing.assert_array_equal(decode(data, at_least=(1, 1)), decode(data))


def test_views_of_a_jpeg_decoded_in_part_are_close_to_those_of_the_whole(tmp_path):
    photo(1200, 1700).filter(ImageFilter.GaussianBlur(1.5)).save(tmp_path / "large.jpg", quality=92)
    picture = FilePicture.open(tmp_path / "large.jpg")
    plan = plan_anyres(picture.height, picture.width, tile=112)
    exact, close = Normalise((0, 0, 0), (1 / 255,) * 3, spare=None), Normalise((0, 0, 0), (1 / 255,) * 3)
    assert exact.least(plan.views) is None
    assert Normalise((0, 0, 0), (1, 1, 1), backend="pillow").least(plan.views) is None
    assert close.least(plan.views) == (2 * 159, 2 * 224)  # twice the tiles' canvas, and the thumbnail is smaller
    part = read(picture, "a", close.least(plan.views))
    assert tuple(part.shape) == (3, 600, 850)
    views = [torch.stack(cut_views(pixels, plan.views, exact)) for pixels in (read(picture, "a"), part)]
    difference = (views[0] - views[1]).abs()
    assert 0 < difference.mean() < 0.5  # of 255
    assert difference.max() < 12


def test_a_key_of_the_inputs_decodes_large_jpegs_whole():
    views = plan_anyres(1200, 1700, tile=112).views
    processor = Processor(None, None)
    least = [processor.with_inputs(Inputs(whole_jpegs=whole)).normalise.least(views) for whole in (None, True, False)]
    assert least == [(2 * 159, 2 * 224), None, (2 * 159, 2 * 224)]
    both = processor.with_inputs(Inputs(whole_jpegs=True)).with_inputs(Inputs(fill=(1, 2, 3), whole_jpegs=False))
    assert both.normalise == replace(processor.normalise, fill=(1, 2, 3))


def test_a_picture_of_another_size_than_promised_is_refused_though_a_part_will_do(tmp_path):
    photo(200, 300).save(tmp_path / "a.jpg")
    for height, width in ((200, 600), (400, 300), (100, 150)):
        with pytest.raises(PictureError, match=r"its metadata says"):
            read(FilePicture(tmp_path / "a.jpg", height=height, width=width), "a", (10, 10))


@pytest.mark.parametrize("kind", ["CMYK", "YCCK"])
def test_four_colour_jpegs_are_as_pillow_shows_them(kind):
    """YCCK is CMYK with its first three channels stored as luma and chroma; the Adobe marker distinguishes them."""
    data = saved(photo().convert("CMYK"), "JPEG", quality=95)
    at = data.index(b"Adobe\x00") + 11  # the marker's transform byte
    assert data[at] in (0, 2)
    data = data[:at] + (b"\x02" if kind == "YCCK" else b"\x00") + data[at + 1 :]
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    np.testing.assert_array_equal(ours(data), by_pillow(data))
    other = data[:at] + (b"\x00" if kind == "YCCK" else b"\x02") + data[at + 1 :]
    assert (ours(other) != ours(data)).any()


def test_grey_jpeg_becomes_three_equal_channels():
    data = saved(photo().convert("L"), "JPEG")
    pixels = ours(data)
    np.testing.assert_array_equal(pixels, by_pillow(data))
    assert (pixels[..., 0] == pixels[..., 2]).all()


def on_white(image: Image.Image) -> np.ndarray:
    """Blend alpha with white, in floating point."""
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_laid_on_white(mode, kind):
    image = photo().convert("RGBA")
    image.putalpha(Image.fromarray(np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)))
    data = saved(image.convert(mode), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    assert np.abs(ours(data) - on_white(Image.open(io.BytesIO(data)))).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_with_transparency_is_looked_up_and_laid_on_white(kind):
    image = photo().quantize(8)
    data = saved(image, kind, transparency=3)
    seen = np.asarray(Image.open(io.BytesIO(data)))
    clear = on_white(Image.open(io.BytesIO(data))) if seen.ndim == 3 else on_white(image_with(data))
    assert (clear == 255).all(2).any()
    np.testing.assert_array_equal(ours(data), clear)


def image_with(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_a_palette_with_graded_transparency_is_laid_on_white():
    image = photo().quantize(4)
    data = saved(image, "PNG", transparency=bytes([0, 85, 170, 255]))
    assert np.abs(ours(data) - on_white(image_with(data))).max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_one_transparent_colour_becomes_white(mode):
    image = photo().convert(mode)
    colour = image.getpixel((5, 6))
    pixels = ours(saved(image, "PNG", transparency=colour))
    assert pixels[6, 5].tolist() == [255, 255, 255]
    other = np.asarray(image.convert("RGB"))
    assert (pixels == other).mean() > 0.9


def test_16_bit_grey_is_scaled():
    values = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    for data in (saved(Image.fromarray(values), "PNG"), saved(Image.fromarray(values), "TIFF")):
        np.testing.assert_array_equal(ours(data)[..., 1], np.round(values / 257))
    pgm = f"P5 {WIDTH} {HEIGHT} 65535\n".encode() + values.astype(">u2").tobytes()
    np.testing.assert_array_equal(ours(pgm)[..., 2], np.round(values / 257))


def png_16_bit(values: np.ndarray, *, before: bytes = b"") -> bytes:
    """Write [H, W] or [H, W, 3] uint16 as a PNG; Pillow cannot write 16-bit RGB."""
    height, width = values.shape[:2]
    lines = b"".join(b"\x00" + line.astype(">u2").tobytes() for line in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if values.ndim == 3 else 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_16_bit_rgb_is_scaled():
    values = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.uint16)
    assert np.abs(ours(png_16_bit(values)) - values / 257).max() <= 1


def test_a_transparent_value_of_16_bit_grey_becomes_white():
    values = np.full((4, 5), 1000, dtype=np.uint16)
    values[1, 2] = 7
    pixels = ours(png_16_bit(values, before=chunk(b"tRNS", struct.pack(">H", 7))))
    assert pixels[1, 2].tolist() == [255, 255, 255]
    assert pixels[0, 0].tolist() == [4, 4, 4]


def test_1_bit_is_black_and_white():
    bits = np.indices((HEIGHT, WIDTH)).sum(0) % 3 == 0
    for kind in ("PNG", "TIFF", "BMP"):
        np.testing.assert_array_equal(ours(saved(Image.fromarray(bits), kind))[..., 0], bits * 255)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_of_several_frames_the_first_is_taken(kind):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.abs(ours(data).astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
def test_pixels_beyond_the_limit_are_refused_before_they_are_decoded(kind, monkeypatch):
    data = saved(photo(), kind)
    limit = HEIGHT * WIDTH * 11 // 3 + 1 if kind == "WEBP" else HEIGHT * WIDTH  # 11 bytes a pixel, not 3
    assert decode(data, limit_pixels=limit).shape == (3, HEIGHT, WIDTH)

    def refuse(*args: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    monkeypatch.setattr("simplejpeg.decode_jpeg", refuse)
    for asked in (decode, read_header):
        with pytest.raises(PictureError, match=r"'sky' has 53 x 37 = 1961 pixels, at most 1960 .* Shrink it"):
            asked(data, limit_pixels=limit - 1, name="sky")


def png_bomb(side: int) -> bytes:
    """A PNG of side x side pixels with a header and only a few bytes of pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest takes off the filter of decode.py
@pytest.mark.parametrize("side", [9_460, 13_000, 30_000])  # over the limit; well over it; over the one of Pillow
@pytest.mark.parametrize("asked", [decode, read_header])
def test_a_decompression_bomb_is_refused(asked: Callable, side):
    with pytest.raises(PictureError, match=r"'bomb'.* Shrink it"):
        asked(png_bomb(side), name="bomb")


def test_a_text_chunk_that_explodes_is_refused():
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "0" * 70_000_000, zip=True)
    with pytest.raises(PictureError, match=r"'loud' is damaged .* Replace the file"):
        read_header(saved(photo(), "PNG", pnginfo=text), name="loud")


KINDS = ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.8])
def test_a_truncated_file_is_named_and_never_half_decoded(kind, share, tmp_path):
    data = saved(photo(64, 64), kind)
    path = tmp_path / "cut.jpg"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(PictureError, match=r"cut\.jpg.*(Replace|leave it out)"):
        decode(path)


@pytest.mark.parametrize("kind", KINDS)
def test_broken_bytes_end_in_a_picture_error_or_a_picture(kind):
    data = saved(photo(), kind)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 4):
            broken[at] = rng.integers(256)
        for asked in (read_header, decode):
            try:
                asked(bytes(broken), limit_pixels=10**6, name="broken")
            except PictureError as error:
                refused += 1
                assert "'broken'" in str(error)
    assert refused or kind in ("BMP", "PPM")  # raw pixels: any byte is as good as another


def test_a_jpeg_whose_end_is_missing_is_refused_though_only_its_last_bytes_are():
    data = saved(photo(200, 200), "JPEG")
    with pytest.raises(PictureError, match="damaged"):
        decode(data[:-40])


def test_stray_bytes_between_markers_do_not_lose_a_good_jpeg():
    data = saved(photo(), "JPEG")
    at = data.index(b"\xff\xdb")
    data = data[:at] + b"\x00\x00" + data[at:]
    np.testing.assert_array_equal(ours(data), by_pillow(data))


@pytest.mark.parametrize("content", [b"", b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_image_is_refused_whatever_its_name(content, tmp_path):
    (tmp_path / "notes.jpg").write_bytes(content)
    for asked in (decode, read_header):
        with pytest.raises(PictureError, match=r"notes\.jpg' is not an image that can be read: .*, or leave it out"):
            asked(tmp_path / "notes.jpg")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    for path, message in ((tmp_path / "absent.jpg", "there is no image"), (tmp_path, "is a folder and not an image")):
        for reader in (decode, read_header):
            with pytest.raises(PictureError, match=message):
                reader(path)


def test_the_error_about_a_broken_picture_names_sample_and_file(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(saved(photo(), "JPEG"))
    picture = FilePicture.open(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(PictureError, match=r"sample 'ocr/7': .*a\.jpg' is damaged"):
        read(picture, "ocr/7")


# --- half an image ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("at_least", [None, (1, 1)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.97])
def test_a_jpeg_that_was_cut_and_closed_is_not_whole(at_least, mode, progressive, share):
    """Pillow fills its lower part with grey and says nothing."""
    whole = saved(photo(120, 90).convert(mode), "JPEG", progressive=progressive, quality=90)
    start = whole.rindex(b"\xff\xda") if not progressive else whole.index(b"\xff\xda")
    cut = whole[: start + 20 + int((len(whole) - start - 40) * share)].removesuffix(b"\xff") + b"\xff\xd9"
    assert decode(whole, at_least=at_least) is not None
    assert read_header(cut) == read_header(whole)
    with pytest.raises(PictureError, match=r"the image 'x' is (not whole: a part of its pixels is missing|damaged)"):
        decode(cut, at_least=at_least, name="x")


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "BMP", "WEBP"])
def test_other_formats_that_were_cut_and_closed_are_damaged(kind):
    whole = saved(photo(120, 90), kind)
    end = {"PNG": whole[-12:], "GIF": b"\x00\x3b"}.get(kind, b"")
    with pytest.raises(PictureError):
        decode(whole[: len(whole) // 2] + end)


def test_a_pipe_is_no_image_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for read_one in (read_header, decode):
        with pytest.raises(PictureError, match="is a pipe, a socket or a device"):
            read_one(tmp_path / "pipe.png")


# --- bombs -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "mode", "most"),
    [("PNG", "RGB", 2000), ("PNG", "RGBA", 1500), ("PNG", "LA", 1500), ("JPEG", "CMYK", 1500), ("WEBP", "RGB", 545)],
)
def test_the_limit_counts_the_bytes_of_a_pixel(kind, mode, most):
    for height, fits in ((1, True), (most // 20, True), (most // 20 + 1, False)):
        data = saved(Image.new(mode, (20, height)), kind)
        if fits:
            assert read_header(data, limit_pixels=2000) == (height, 20)
            decode(data, limit_pixels=2000)
            continue
        for look in (read_header, decode):
            with pytest.raises(TooManyPixels, match=rf"at most {most} of its kind are decoded.*raise `limit_pixels`"):
                look(data, limit_pixels=2000)


def test_a_webp_of_some_bytes_and_89_megapixels_is_refused_by_its_header():
    data = bytearray(saved(Image.new("RGB", (16383, 2)), "WEBP", lossless=True))
    width, height = 9400, 9500
    at = data.index(b"VP8L") + 9  # behind the signature byte: 14 bits of width - 1, 14 bits of height - 1
    rest = int.from_bytes(data[at : at + 4], "little") >> 28
    data[at : at + 4] = ((width - 1) | (height - 1) << 14 | rest << 28).to_bytes(4, "little")
    assert width * height < LIMIT_PIXELS
    with pytest.raises(TooManyPixels, match="9400 x 9500 = 89300000 pixels"):
        read_header(bytes(data))


def icon(inner: bytes, side: int = 16) -> bytes:
    """An ICO whose directory says `side` x `side`."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, side, side, 0, 0, 1, 32, len(inner), 22) + inner


def test_an_image_that_is_larger_than_the_directory_of_its_ico_says_is_refused():
    assert read_header(icon(saved(Image.new("RGBA", (16, 16)), "PNG")), limit_pixels=2000) == (16, 16)
    bitmap = struct.pack("<IiiHHIIiiII", 40, 5000, 5000, 1, 32, 0, 0, 0, 0, 0, 0)
    for inner in (saved(Image.new("RGBA", (300, 300)), "PNG"), bitmap):
        for look in (read_header, decode):
            with pytest.raises(TooManyPixels, match=r"the ICO 'x' holds an image of (300 x 300|5000 x 5000) = "):
                look(icon(inner), limit_pixels=2000, name="x")


def test_a_jpeg_of_too_many_scans_is_refused_before_it_is_decoded():
    data = saved(photo(), "JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    decode(data)
    with pytest.raises(TooManyPixels, match=r"the JPEG 'slow' has \d+ scans, at most 200 are decoded"):
        decode(data[:first] + data[first:-2] * 40 + data[-2:], name="slow")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\n<!DOCTYPE html><html>", "it is a web page"),
        (b"<?xml version='1.0'?>\n<svg xmlns='x'/>", "it is an SVG drawing"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is a HEIC photo"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "it is a video"),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1", "it is a damaged AVIF"),
        (b"\0\0\0\x18ftypcrx \0\0\0\0", "it begins like none of JPEG"),
        (b"%PDF-1.4\n", "it is a PDF"),
        (b"8BPS\0\1", "it is a Photoshop file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "by `git lfs pull`"),
        (b"these are no pixels", "it begins like none of JPEG"),
    ],
)
@pytest.mark.parametrize("function", [decode, read_header])
def test_a_file_that_is_no_image_is_called_by_its_name(function, content, message):
    with pytest.raises(PictureError, match=message):
        function(content)
