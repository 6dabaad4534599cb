"""Rows may name what lies below the folder of their pictures, and the places that the recipe adds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_mm.datamodules.conversations import Conversations
from lit_mm.datamodules.corpora import Corpus
from lit_mm.documents.sources import SampleError, open_source
from lit_mm.documents.sources.boundary import Boundary, is_private
from lit_mm.errors import UserError
from tests.documents.sources.conftest import Write

OUTSIDE = "lies outside of the folder of the pictures"
PRIVATE = "is on this machine or in its network"


@pytest.mark.parametrize(
    ("path", "root", "places", "reason"),
    [
        ("/data/a.png", "/data", None, None),
        ("/data/b/../a.png", "/data", None, None),
        ("/data/../etc/passwd", "/data", None, OUTSIDE),
        ("/data/b/../../database/a.png", "/data", None, OUTSIDE),
        ("/etc/hostname", "/data", None, OUTSIDE),
        ("/etc/hostname", "/data", "/srv, /etc/", None),
        ("/etc/hostname", "/", None, None),
        ("a.png", "", None, None),
        ("../a.png", "", None, OUTSIDE),
        ("../a.png", "", "../", None),
        ("../a.png", "b", "..", None),
        ("/c.png", "memory://d", None, OUTSIDE),
        ("memory://d/a.png", "memory://d", None, None),
        ("memory://d/b/../a.png", "memory://d/b", None, "the source allows none of memory"),
        ("memory://d/b/%2e%2e/a.png", "memory://d/b", None, "the source allows none of memory"),
        ("memory://data/a.png", "memory://d", None, "the source allows none of memory"),
        ("https://example.org/a.png", "/data", None, "the source allows none of https"),
        ("https://example.org/a.png", "/data", "https", None),
        ("http://example.org/a.png", "/data", "https", "the source allows none of http"),
        ("https://example.org/b/a.png", "/data", "https://EXAMPLE.org/b", None),
        ("https://example.org/bc/a.png", "/data", "https://example.org/b", "the source allows none of https"),
        ("https://example.org/a::file:///etc/passwd", "/data", "https", "a URL that cannot be read"),
        ("https://a::file:///etc/passwd", "/data", "https", "a URL that cannot be read"),
        ("http://[", "/data", "http", "a URL that cannot be read"),
        ("http://127.0.0.1:8765/a.png", "/data", "http", PRIVATE),
        ("http://user:word@2130706433/a.png", "/data", "http", PRIVATE),
        ("http://127.0.0.1:8765/a.png", "/data", "http://127.0.0.1:8765/", None),
        ("http://127.0.0.1:80/a.png", "/data", "http://127.0.0.1:8765/", "the source allows none of http"),
        ("s3://bucket/a.png", "/data", "s3", None),
    ],
)
def test_what_a_row_may_name(path: str, root: str, places: str | None, reason: str | None) -> None:
    refusal = Boundary.of(places).refusal(path, root)
    assert refusal is None if reason is None else (refusal and reason in refusal[0])


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("example.org", False),
        ("8.8.8.8", False),
        ("2606:4700::1111", False),
        ("localhost", True),
        ("LOCALHOST.", True),
        ("metadata", True),
        ("metadata.google.internal", True),
        ("printer.local", True),
        ("127.1", True),
        ("0x7f000001", True),
        ("017700000001", True),
        ("10.0.0.3", True),
        ("169.254.169.254", True),
        ("100.64.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("fe80::1%eth0", True),
        ("0.0.0.0", True),
        ("", True),
    ],
)
def test_addresses_of_the_own_network_are_known_in_every_form(host: str, private: bool) -> None:
    assert is_private(host) is private


@pytest.mark.parametrize("places", ["file", "images here", "http://[", "https://example.org:port/"])
def test_a_place_that_is_none_is_refused(places: str) -> None:
    with pytest.raises(UserError, match="`places` of a source lists folders"):
        Boundary.of(places)


def row(name: str) -> str:
    turns = [{"from": "human", "value": "<image>\nx"}, {"from": "gpt", "value": "y"}]
    return json.dumps({"id": "1", "image": name, "conversations": turns})


def test_names_that_escape_are_bad_samples_and_links_are_not_followed(write: Write, folder: Path) -> None:
    outside = folder.parent / "outside.png"
    outside.write_bytes((folder / "wide.png").read_bytes())
    (folder / "link.png").symlink_to(outside)
    names = [
        "link.png",
        str(folder / "wide.png"),
        "../outside.png",
        str(outside),
        f"file://{outside}",
        "..\\outside.png",
    ]
    path = write([row(name) for name in names])
    source = open_source({"format": "llava", "path": path})
    assert [source[number].pictures[0].width for number in (0, 1)] == [20, 20]
    for number in range(2, len(names)):
        with pytest.raises(SampleError, match=OUTSIDE) as error:
            source[number]
        assert error.value.kind == "outside_folder"
    allowed = open_source({"format": "llava", "path": path, "places": str(folder.parent)})
    assert [allowed[number].pictures[0].width for number in range(len(names))] == [20] * len(names)


def test_data_modules_hand_the_places_on(write: Write, folder: Path) -> None:
    outside = folder.parent / "outside.png"
    outside.write_bytes((folder / "wide.png").read_bytes())
    path, places = write([row("../outside.png")]), str(folder.parent)
    assert Conversations(path, format="llava", places=places).source()[0].pictures[0].width == 20
    assert Corpus("a", "llava", path, places=places).open()[0].pictures[0].width == 20
