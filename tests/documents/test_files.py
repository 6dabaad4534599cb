"""Image files report their size before pixels are read, and every kind of file decodes to the RGB that people see."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_mm.documents.files import FilePicture
from lit_mm.errors import UserError
from lit_mm.samples.processor import read

HEIGHT, WIDTH = 12, 20
ORIENTATION = 0x0112


def scene() -> Image.Image:
    """A picture with a red left half, a blue right half and a green top row, so that turns and flips are visible."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[:, : WIDTH // 2, 0] = pixels[:, WIDTH // 2 :, 2] = 255
    pixels[0] = (0, 255, 0)
    return Image.fromarray(pixels)


def saved(path: Path, image: Image.Image, **options) -> FilePicture:
    image.save(path, **options)
    return FilePicture.open(path)


def pixels_of(picture: FilePicture) -> np.ndarray:
    image = picture.read()
    assert image.mode == "RGB"
    assert image.size == (picture.width, picture.height)
    return np.asarray(image)


@pytest.mark.parametrize(
    ("orientation", "undone"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, 1)),
        (7, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda a: np.rot90(a, -1)),
    ],
)
def test_it_is_turned_upright_as_its_exif_says(tmp_path, orientation, undone):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undone(np.asarray(scene()))))  # as a camera writes it
    picture = saved(tmp_path / "photo.png", stored, exif=exif)
    assert (picture.height, picture.width) == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(pixels_of(picture), np.asarray(scene()))
    assert read(picture, "photo").shape == (3, HEIGHT, WIDTH)


def test_alpha_is_laid_on_white(tmp_path):
    image = Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 127))
    pixels = pixels_of(saved(tmp_path / "a.png", image))
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[0, 1].tolist() == [128, 128, 128]
    assert pixels[5, 5].tolist() == [255, 255, 255]


def test_grey_with_alpha_is_laid_on_white(tmp_path):
    assert pixels_of(saved(tmp_path / "la.png", Image.new("LA", (WIDTH, HEIGHT), (0, 0)))).min() == 255


def test_a_palette_is_looked_up(tmp_path):
    picture = saved(tmp_path / "p.png", scene().convert("P", palette=Image.Palette.ADAPTIVE))
    np.testing.assert_array_equal(pixels_of(picture), np.asarray(scene()))


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_a_transparent_palette_colour_becomes_white(tmp_path, suffix):
    image = Image.new("P", (WIDTH, HEIGHT), 1)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((3, 2), 0)
    pixels = pixels_of(saved(tmp_path / f"p.{suffix}", image, transparency=1))
    assert pixels[2, 3].tolist() == [200, 0, 0]
    assert pixels[0, 0].tolist() == [255, 255, 255]


def test_cmyk_keeps_its_colours(tmp_path):
    pixels = pixels_of(saved(tmp_path / "print.jpg", scene().convert("CMYK"), quality=100, subsampling=0))
    assert np.abs(pixels[4, 2].astype(int) - (255, 0, 0)).max() < 8
    assert np.abs(pixels[4, -3].astype(int) - (0, 0, 255)).max() < 8


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, suffix):
    values = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    pixels = pixels_of(saved(tmp_path / f"scan.{suffix}", Image.fromarray(values)))
    np.testing.assert_array_equal(pixels[:, :, 1], np.round(values / 257))


def test_1_bit_is_black_and_white(tmp_path):
    bits = np.indices((HEIGHT, WIDTH)).sum(0) % 2 == 0
    pixels = pixels_of(saved(tmp_path / "fax.png", Image.fromarray(bits)))
    np.testing.assert_array_equal(pixels[:, :, 0], bits * 255)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert pixels_of(FilePicture.open(tmp_path / f"a.{suffix}"))[5, 5].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9])
def test_a_truncated_file_is_named_and_never_half_read(tmp_path, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=rf"cut\.{suffix}"):
        FilePicture.open(path).read()


@pytest.mark.parametrize("place", range(8, 60, 4))
def test_a_png_with_broken_bytes_ends_in_a_user_error_or_a_picture(tmp_path, place):
    path = tmp_path / "broken.png"
    scene().save(path)
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    try:
        assert FilePicture.open(path).read().mode == "RGB"
    except UserError as error:
        assert "broken.png" in str(error)


def test_a_text_file_named_png_is_refused(tmp_path):
    (tmp_path / "notes.png").write_text("not an image")
    with pytest.raises(UserError, match=r"notes\.png' is not an image"):
        FilePicture.open(tmp_path / "notes.png")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path, message in ((tmp_path / "absent.png", "there is no image"), (tmp_path, "is a folder and not an image")):
        with pytest.raises(UserError, match=message):
            FilePicture.open(path)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_values_are_refused_before_anything_is_trained(tmp_path, dtype):
    Image.fromarray(np.zeros((4, 4), dtype=dtype)).save(tmp_path / "depth.tiff")
    with pytest.raises(UserError, match="32-bit values"):
        FilePicture.open(tmp_path / "depth.tiff")


def test_an_image_of_an_absurd_size_is_refused(tmp_path, monkeypatch):
    scene().save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # 240 pixels are more than twice the limit
    with pytest.raises(UserError, match=r"huge\.png"):
        FilePicture.open(tmp_path / "huge.png")


def test_a_file_that_changed_after_it_was_indexed_is_noticed(tmp_path):
    picture = saved(tmp_path / "a.png", scene())
    scene().resize((5, 6)).save(tmp_path / "a.png")
    with pytest.raises(
        UserError, match=r"sample 'doc': the image '.*a\.png' is 5 x 6 pixels, its metadata says 20 x 12"
    ):
        read(picture, "doc")
