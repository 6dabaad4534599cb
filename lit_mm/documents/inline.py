"""Pictures that are not files on a disk: decoded images, bytes, data URIs, images from the web."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from lit_mm.documents.decode import decode, read_header
from lit_mm.errors import UserError

LIMIT_BYTES = 64 * 2**20  # largest image file from the web
SECONDS = 20.0  # longest wait for an answer of the web server


@dataclass(frozen=True)
class DecodedPicture:
    """A Pillow image as a picture of a document."""

    image: Image.Image

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def height(self) -> int:
        return self.image.height

    def read(self) -> Image.Image:
        return self.image


@dataclass(frozen=True, slots=True)
class BytesPicture:
    """The bytes of an image file, as `lit_mm.documents.decode` sees them.

    Attributes:
        data: bytes of the file.
        width, height: size of the upright image, pixels.
        name: name of the picture in errors.
    """

    data: bytes = field(repr=False)
    width: int
    height: int
    name: str

    @classmethod
    def open(cls, data: bytes, name: str) -> BytesPicture:
        """Open an image by reading its header alone.

        Raises:
            PictureError: the bytes are no image that can be decoded.
        """
        height, width = read_header(data, name=name)
        return cls(data, width, height, name)

    def pixels(self, at_least: tuple[int, int] | None = None) -> Tensor:
        """Decode to [3, H, W] uint8 RGB, smaller where `at_least` allows (see `decode`).

        Raises:
            PictureError: the image is damaged.
        """
        return decode(self.data, at_least=at_least, promised=(self.height, self.width), name=self.name)

    def read(self) -> Image.Image:
        """Decode to an RGB Pillow image, for viewing. Raises the same errors as `pixels`."""
        return Image.fromarray(self.pixels().permute(1, 2, 0).numpy())


def picture_of_uri(uri: str, *, web: bool = False) -> BytesPicture:
    """Open the picture of a data URI, or download that of an http or https address.

    Args:
        uri: `data:image/png;base64,...`, or an address.
        web: True allows addresses; they let whoever sends a message make this machine send requests.
    Raises:
        UserError: the URI is of another kind, or an address is not allowed.
        PictureError: the bytes are no image that can be decoded.
    """
    scheme, _, rest = uri.partition(":")
    if scheme == "data":
        kind, comma, encoded = rest.partition(",")
        if not comma or not kind.startswith("image/") or not kind.endswith(";base64"):
            raise UserError(f"an image is a data URI such as data:image/png;base64,..., got {uri[:40]!r}")
        try:
            return BytesPicture.open(base64.b64decode(encoded, validate=True), f"data:{kind}")
        except binascii.Error as error:
            raise UserError(f"the data URI of an image is not base64 ({error}): {uri[:40]!r}") from error
    if scheme not in ("http", "https"):
        raise UserError(f"an image is a data URI such as data:image/png;base64,..., got {uri[:40]!r}")
    if not web:
        raise UserError(
            f"the image {uri[:80]!r} is a URL, which is not allowed here. Send the image as a data URI "
            "(data:image/png;base64,...), or start the server with --allow_urls"
        )
    return BytesPicture.open(download(uri), uri)


def download(address: str) -> bytes:
    """Download a file of at most `LIMIT_BYTES` by http or https.

    Raises:
        UserError: the file cannot be downloaded, or is larger.
    """
    import httpx

    data = bytearray()
    try:
        with httpx.stream("GET", address, follow_redirects=True, timeout=SECONDS) as response:
            response.raise_for_status()
            for piece in response.iter_bytes():
                data += piece
                if len(data) > LIMIT_BYTES:
                    raise UserError(f"the image {address!r} has more than {LIMIT_BYTES} bytes; make it smaller")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(f"the image {address!r} cannot be downloaded ({error}). Send it as a data URI") from error
    return bytes(data)
