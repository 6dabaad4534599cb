"""Behaviour common to all sources: URLs, shards, and the picture index."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from lit_mm.documents import decode
from lit_mm.documents.sources import (
    FORMATS,
    CaptionShards,
    LlavaConversations,
    ObelicsPages,
    PictureFolder,
    SampleError,
    cache,
    open_source,
    source,
)
from lit_mm.errors import UserError
from tests.documents.sources.conftest import image_bytes
from tests.documents.sources.test_captions import pair, shard
from tests.documents.sources.test_conversations import llava
from tests.documents.sources.test_pages import parquet


@pytest.fixture
def no_header(monkeypatch: pytest.MonkeyPatch):
    """A function; after it is called, every read of a header fails the test."""
    return lambda: monkeypatch.setattr(decode, "read_header", lambda *_, **__: pytest.fail("a header was read"))


def test_the_limit_of_pixels_is_the_decoder_s():
    assert source.LIMIT_PIXELS == decode.LIMIT_PIXELS


def test_files_of_a_pattern_are_one_source(write):
    write([llava(id="a"), llava(id="b")], "part-0.jsonl")
    path = write([llava(id="c")], "part-1.json").replace("part-1.json", "part-{0.jsonl,1.json}")
    opened = LlavaConversations(path, name="mine")
    assert [opened[n].id for n in range(len(opened))] == ["a", "b", "c"]
    assert opened[2].source == "mine"
    for number in (3, -1):
        with pytest.raises(IndexError, match="mine has 3 samples"):
            opened[number]


def test_pictures_may_lie_in_another_folder(write, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.png").write_bytes(image_bytes(5, 6))
    path = write([llava("x.png")])
    assert LlavaConversations(path, images=str(elsewhere))[0].pictures[0].height == 6
    with pytest.raises(SampleError, match=r"another folder \(`images`\)"):
        LlavaConversations(path)[0]


def test_data_and_pictures_may_be_at_a_url(folder, write):
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    local = write([llava(), llava("tall.jpg", id="two"), llava("absent.png", id="three")])
    memory.pipe("/d/data.jsonl", Path(local).read_bytes())
    memory.pipe("/d/data.json", json.dumps([llava()]).encode())
    memory.pipe("/d/s.tar", Path(shard(folder / "s.tar", pair("0", "text"))).read_bytes())
    memory.pipe("/d/p.parquet", Path(parquet(folder / "p.parquet", [{"texts": ["a"], "images": [None]}])).read_bytes())
    memory.pipe("/d/metadata.jsonl", json.dumps({"image": "wide.png", "caption": "c"}).encode())
    for name in ("wide.png", "tall.jpg"):
        memory.pipe(f"/d/{name}", (folder / name).read_bytes())
    remote = LlavaConversations("memory://d/data.jsonl")
    assert [(p.width, p.height) for n in range(2) for p in remote[n].pictures] == [(20, 10), (16, 32)]
    assert tuple(remote[1].pictures[0].pixels().shape) == (3, 32, 16)
    with pytest.raises(SampleError) as caught:
        remote[2]
    assert caught.value.kind == "missing_file"
    assert len(LlavaConversations("memory://d/data.json")) == 1
    assert tuple(CaptionShards("memory://d/s.tar")[0].pictures[0].pixels().shape) == (3, 8, 12)
    assert ObelicsPages("memory://d/p.parquet")[0].turns[0].text == "a"
    assert PictureFolder("memory://d")[0].pictures[0].width == 20
    memory.store.clear()


def test_a_source_travels_to_workers(write):
    opened = LlavaConversations(write([llava()]))
    opened.build_index()
    again = pickle.loads(pickle.dumps(opened))
    assert again[0] == opened[0]
    assert again[0].pictures[0].read().size == (20, 10)


# --- the picture index -----------------------------------------------------------------------------------------------
def test_with_an_index_no_header_is_read_again(write, no_header):
    entries = [llava(), llava(["tall.jpg", "wide.png"], "<image><image>?", "x"), llava(None, "Hello", "Hi")]
    path = write(entries)
    before = [LlavaConversations(path)[n] for n in range(3)]
    done: list[int] = []
    assert LlavaConversations(path).build_index(done.append) == (3, 0)
    assert done[-1] == 3
    no_header()
    opened = LlavaConversations(path)
    assert opened.indexed
    assert [opened[n] for n in range(3)] == before
    assert opened.build_index() == (3, 0)


def test_the_index_is_of_one_format_and_folder(write, tmp_path):
    path = write([llava()])
    LlavaConversations(path).build_index()
    (tmp_path / "elsewhere").mkdir()
    assert not LlavaConversations(path, images=str(tmp_path / "elsewhere")).indexed
    assert not LlavaConversations(write([llava(), llava()])).indexed


def test_what_is_broken_is_told_of_again_and_may_be_cured_without_a_new_index(folder, write, no_header):
    path = write(["{oops", llava("absent.png"), llava("damaged.png"), llava()])
    opened = LlavaConversations(path)
    assert opened.build_index() == (3, 2)
    kinds = []
    for number in range(3):
        with pytest.raises(SampleError) as caught:
            opened[number]
        kinds.append(caught.value.kind)
    assert kinds == ["malformed_json", "missing_file", "unreadable_image"]
    (folder / "absent.png").write_bytes(image_bytes(3, 4))
    assert opened[1].pictures[0].height == 4


def test_an_index_that_was_interrupted_goes_on(write, monkeypatch):
    monkeypatch.setattr(source, "CHUNK", 4)
    path = write([llava(id=str(n)) for n in range(10)])
    opened = LlavaConversations(path)

    def stop(done: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened.build_index(stop)
    assert not LlavaConversations(path).indexed
    read: list[int] = []
    original = LlavaConversations._sizes
    monkeypatch.setattr(LlavaConversations, "_sizes", lambda self, n: read.append(n) or original(self, n))
    opened = LlavaConversations(path)
    assert opened.build_index() == (10, 0)
    assert read == [4, 5, 6, 7, 8, 9]  # the first chunk was kept
    assert LlavaConversations(path).known_sizes(9) == [(10, 20)]
    assert not list((cache.cache_folder() / "index").glob("*.partial"))
    assert not list((cache.cache_folder() / "index").glob(".making-*"))


KILLED = """
import os, signal, sys
from lit_mm.documents.sources import source
source.CHUNK = 4
sizes, asked = source.Source._sizes, []
def counted(self, number):
    asked.append(number)
    if len(asked) > int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return sizes(self, number)
source.Source._sizes = counted
from lit_mm.cli import main
main(["data", "index", "--source", sys.argv[1]])
print(asked)
"""


def test_an_index_that_was_killed_goes_on_where_it_was(folder, write):
    """`data index` is ended by kill -9 in its third chunk, twice, and then runs to its end."""
    path = write([llava(id=str(n)) for n in range(14)])
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}

    def run(asked: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, f"{{format: llava, path: {path}}}", str(asked)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)

    assert run(9).returncode == run(2).returncode == -signal.SIGKILL
    assert not LlavaConversations(path).indexed
    done = run(100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("data: 14 samples, 14 pictures; the index is in ")
    assert done.stdout.splitlines()[-1] == str(list(range(8, 14)))  # two chunks were kept
    assert LlavaConversations(path).known_sizes(13) == [(10, 20)]
    assert sorted(p.suffix for p in (cache.cache_folder() / "index").iterdir()) == ["", ""]  # entries and pictures


def test_data_and_pictures_may_be_on_a_web_server(folder, write, monkeypatch):
    write([llava(), llava("tall.jpg", id="b"), llava("absent.jpg", id="c")])
    shard(folder / "s.tar", pair("0", "a caption"))

    class Quiet(RangeRequestHandler):
        directory = str(folder)

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            remote = LlavaConversations(f"{url}/data.jsonl")
            assert tuple(remote[1].pictures[0].pixels().shape) == (3, 32, 16)
            assert (remote.build_index(), remote.known_sizes(0)) == ((3, 1), [(10, 20)])
            with pytest.raises(SampleError, match=r"data\.jsonl:3: there is no image 'http.*absent\.jpg'"):
                remote[2]
            (document,) = CaptionShards(f"{url}/s.tar")
            assert document.turns[0].text == "a caption"
            assert tuple(document.pictures[0].pixels().shape) == (3, 8, 12)
            with pytest.raises(UserError, match="there is no data file 'http"):
                LlavaConversations(f"{url}/other.jsonl")
        finally:
            server.shutdown()
            thread.join()


class RangeRequestHandler(BaseHTTPRequestHandler):
    """A web server that answers HEAD and GET with ranges; the handler of http.server has no ranges."""

    directory: str
    protocol_version = "HTTP/1.1"

    def do_GET(self, body: bool = True) -> None:
        path = Path(self.directory) / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        first, last = (int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)) if asked else (0, len(data) - 1)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        if body:
            self.wfile.write(data[first : last + 1])

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def log_message(self, *_: object) -> None:
        pass


def test_a_forgotten_index_is_made_from_the_files_of_today(folder, write):
    path = write([llava()])
    opened = LlavaConversations(path)
    opened.build_index()
    Image.new("RGB", (7, 5)).save(folder / "wide.png")
    assert LlavaConversations(path)[0].pictures[0].width == 20
    opened.forget_index()
    opened.build_index()
    assert LlavaConversations(path)[0].pictures[0].width == 7


def test_a_damaged_index_names_its_folder(write):
    path = write([llava()])
    opened = LlavaConversations(path)
    opened.build_index()
    file = next((cache.cache_folder() / "index").glob("*/sizes.npy"))
    file.write_bytes(b"no array")
    with pytest.raises(UserError, match=rf"the index in '{file.parent}' is damaged .*Delete the folder"):
        LlavaConversations(path)


def test_a_cache_that_cannot_be_written_is_told_of(write, folder, monkeypatch):
    (folder / "occupied").write_text("a file")
    monkeypatch.setenv("LIT_MM_CACHE", str(folder / "occupied"))
    with pytest.raises(UserError, match="Set LIT_MM_CACHE to a folder"):
        LlavaConversations(write([llava()]))


# --- declarations ----------------------------------------------------------------------------------------------------
def test_a_declaration_opens_the_class_of_its_format(write):
    path = write([llava("wide.png", "what?\n<image>", "red")])
    opened = open_source({"format": "llava", "path": path, "image_first": True, "name": "mine"})
    assert isinstance(opened, LlavaConversations)
    assert (opened.name, opened.image_first) == ("mine", True)
    assert len(FORMATS) == 9


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        ({"path": "x"}, "the source 'x' has no `format`; expected one of llava, "),
        ({"format": "lava"}, "no data format 'lava'. Did you mean 'llava'?"),
        ({"format": "ShareGPT"}, "no data format 'ShareGPT'. Did you mean 'llava'?"),
        ({"format": "qwen2-vl"}, "no data format 'qwen2-vl'. Did you mean 'messages'?"),
        ({"format": "llava", "path": "x", "imags": "y"}, "has no 'imags'. Did you mean 'images'?"),
        ({"format": "llava"}, r"needs \['path'\]"),
        ({"format": "llava", "path": 3}, "`path` of a source of format 'llava' has the type str, got 3"),
        ({"format": "llava", "path": "x", "image_first": "no"}, "`image_first` .* has the type bool, got 'no'"),
        ({"format": "mmc4", "path": "x", "max_images": True}, r"`max_images` .* has the type int \| None, got True"),
        ({"format": "llava", "path": "x", "limit_pixels": 0}, "`limit_pixels` is at least 1, got 0"),
    ],
)
def test_a_declaration_that_fits_no_format_is_refused(declaration, message):
    with pytest.raises(UserError, match=message):
        open_source(declaration)
