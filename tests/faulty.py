"""A mixture on disk with eight kinds of bad samples and the expected outcome of each."""

from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from lit_mm.datamodules.mixture import Member, Mixture
from lit_mm.documents.sources import LlavaConversations
from tests.tiny import WORDS, Noise

# What is planted -> the kind under which the ledger tells it
FAULTS = {
    "truncated jpeg": "unreadable_image",  # only its pixels show it, in a worker
    "zero bytes": "unreadable_image",
    "text named jpg": "unreadable_image",
    "bomb": "too_many_pixels",
    "missing file": "missing_file",
    "malformed json": "malformed_json",
    "placeholder mismatch": "placeholder_mismatch",
    "masked labels": "no_supervision",  # the question fills the row, the answer is cut away
}


@dataclass(frozen=True)
class Planted:
    """A mixture of two sources, written by `write`.

    Attributes:
        sizes: number of samples in each source.
        kinds: (source, sample id) -> kind of fault.
        sound: ids of the samples without a fault.
        long: ids of sound samples that do not fit a row.
    """

    sizes: dict[str, int]
    kinds: dict[tuple[str, str], str]
    sound: frozenset[str]
    long: frozenset[str]


def write(folder: Path, count: int, each: int) -> Planted:
    """Write a mixture with faults.

    chat.jsonl has `count` samples with pictures, `each` of every kind of fault among them. words.jsonl has count // 2
    samples without pictures, three of them too long for a row of 192 tokens.
    """
    rng = Random(count)
    folder.mkdir(parents=True, exist_ok=True)
    places = rng.sample(range(count), each * len(FAULTS))
    planted = {place: list(FAULTS)[turn // each] for turn, place in enumerate(places)}
    kinds: dict[tuple[str, str], str] = {}
    lines = []
    for number in range(count):
        fault = planted.get(number, "")
        (folder / f"{number}.jpg").write_bytes(_file(number, fault))
        if fault == "missing file":
            (folder / f"{number}.jpg").unlink()
        said, asked = _words(rng, 6), _words(rng, 12) + "<image>" * (2 if fault == "placeholder mismatch" else 1)
        if fault == "masked labels":
            asked += " ".join(rng.choices(WORDS, k=200))
        line = json.dumps(_entry(f"chat/{number}", asked, said, image=f"{number}.jpg"))
        lines.append(line[:-9] if fault == "malformed json" else line)
        if fault:
            identity = f"chat.jsonl:{number + 1}" if fault == "malformed json" else f"chat/{number}"
            kinds["chat", identity] = FAULTS[fault]
    (folder / "chat.jsonl").write_text("\n".join(lines) + "\n")
    entries = [
        _entry(f"words/{n}", _words(rng, 12), _words(rng, 6) if n > 2 else " ".join(rng.choices(WORDS, k=200)))
        for n in range(count // 2)
    ]
    (folder / "words.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    bad = {identity for _, identity in kinds} | {f"chat/{n}" for n in planted}
    sound = {f"chat/{n}" for n in range(count)} | {f"words/{n}" for n in range(count // 2)}
    return Planted(
        {"chat": count, "words": count // 2},
        kinds,
        frozenset(sound - bad),
        frozenset(f"words/{n}" for n in range(3)),
    )


def _words(rng: Random, most: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def _entry(identity: str, asked: str, said: str, **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]
    return {"id": identity, "conversations": turns, **more}


def _file(number: int, fault: str) -> bytes:
    if fault == "zero bytes":
        return b""
    if fault == "text named jpg":
        return b"this is no picture\n" * 20
    if fault == "bomb":
        return _png(12_000, 12_000)
    buffer = io.BytesIO()
    Noise(number, 20 + number % 7, 30).read().save(buffer, "JPEG", quality=90)
    whole = buffer.getvalue()
    return whole[: len(whole) // 2] if fault == "truncated jpeg" else whole


def _png(width: int, height: int) -> bytes:
    """A PNG with a header for a large picture and next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


class FaultyMixture(Mixture):
    """A data module over the mixture that `write` wrote to a folder."""

    def __init__(self, place: str, weights: str = "size", **options: Any) -> None:
        members = [Member(LlavaConversations(str(Path(place) / f"{name}.jsonl"))) for name in ("chat", "words")]
        given = {"global_batch": 4, "row_tokens": 192, "window": 16, "num_workers": 0, "too_long": "truncate"}
        given |= {"on_bad_sample": "quarantine", "max_bad": 0.5, "max_unsupervised": 0.5}
        super().__init__(members, weights, **given | options)
