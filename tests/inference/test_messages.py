"""Messages of the chat-completions protocol become documents; images come as data URIs."""

from __future__ import annotations

import base64
import io
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from PIL import Image

from lit_mm.documents.document import Turn
from lit_mm.documents.inline import BytesPicture, picture_of_uri
from lit_mm.errors import UserError
from lit_mm.inference.messages import check_fields, document_of


def png(width: int = 30, height: int = 20) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return file.getvalue()


URI = "data:image/png;base64," + base64.b64encode(png()).decode()
PICTURE = BytesPicture(png(), 30, 20, "data:image/png;base64")


def test_messages_become_turns_with_pictures_in_their_places() -> None:
    messages = [
        {"role": "developer", "content": "be short"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": URI}}, {"type": "text", "text": "a"}]},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "image_url", "image_url": URI}]},
    ]
    assert document_of(messages, picture_of_uri).turns == (
        Turn("system", ("be short",)),
        Turn("user", (PICTURE, "a")),
        Turn("assistant", ("b",)),
        Turn("user", ("c", PICTURE)),
    )
    assert PICTURE.pixels().shape == (3, 20, 30) and PICTURE.read().getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "the last message must be the user's, got the roles []"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "the last message must be the user",
        ),
        ([{"role": "tool", "content": "a"}], "message 0: `role` is one of"),
        (
            [{"role": "user", "content": [{"type": "input_audio"}]}],
            "a part of a message is a text or an image, got 'input_audio'",
        ),
    ],
)
def test_messages_that_cannot_be_answered_are_refused(messages, message) -> None:
    with pytest.raises(UserError) as error:
        document_of(messages, picture_of_uri)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file:///etc/passwd", "an image is a data URI"),
        ("/etc/passwd", "an image is a data URI"),
        ("data:text/plain;base64,AAAA", "an image is a data URI"),
        ("data:image/png,AAAA", "an image is a data URI"),
        ("data:image/png;base64,A", "is not base64"),
        ("data:image/png;base64,AAAA", "'data:image/png;base64'"),
        ("http://127.0.0.1:1/x.png", "is a URL, which is not allowed here"),
    ],
)
def test_uris_that_are_no_image_are_refused(uri, message) -> None:
    with pytest.raises(UserError) as error:
        picture_of_uri(uri)
    assert message in str(error.value)


def test_an_image_is_downloaded_where_addresses_are_allowed(monkeypatch) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/red.png" else 404)
            self.end_headers()
            self.wfile.write(png())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    open_picture = partial(picture_of_uri, web=True)
    assert open_picture(f"{address}/red.png") == BytesPicture(png(), 30, 20, f"{address}/red.png")
    with pytest.raises(UserError, match="cannot be downloaded"):
        open_picture(f"{address}/blue.png")
    monkeypatch.setattr("lit_mm.documents.inline.LIMIT_BYTES", 10)
    with pytest.raises(UserError, match="has more than 10 bytes"):
        open_picture(f"{address}/red.png")
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "fields",
    [{}, {"seed": None, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "best_of": 1, "n": 2},
     {"modalities": ["text"], "function_call": "none", "logprobs": False, "logit_bias": {}, "stop_token_ids": []}],
)  # fmt: skip
def test_fields_that_ask_for_nothing_are_accepted(fields: dict[str, object]) -> None:
    check_fields(fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 0), ("seed", 7), ("logprobs", True), ("top_k", 5), ("ignore_eos", True), ("stop_token_ids", [2]),
     ("best_of", 3), ("modalities", ["text", "audio"]), ("n", 0), ("n", None), ("n", 129), ("n", "two")],
)  # fmt: skip
def test_fields_that_would_be_dropped_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UserError, match=name):
        check_fields({name: value})
