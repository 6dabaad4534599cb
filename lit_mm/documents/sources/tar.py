"""Tar shards in WebDataset's form."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Mapping
from functools import cached_property

import numpy as np

from lit_mm.documents.sources.blobs import SpanBlob
from lit_mm.documents.sources.errors import SampleError
from lit_mm.documents.sources.part import Part
from lit_mm.documents.sources.paths import name_of
from lit_mm.documents.sources.storage import open_file
from lit_mm.errors import UserError


class TarPart(Part):
    """Reads a .tar in WebDataset's form. An entry has the neighbouring files of one key, the name up to its first dot.

    The index has `members` [M, 2] (start and size in bytes), `firsts` [N + 1] (first member of each entry, and M),
    `names` (names of all members, joined) and `ends` [M] (end of each name). An entry is a mapping ending -> span.

    Source: the WebDataset format: members of a key are adjacent, directories belong to the key.
    """

    def scan(self) -> dict[str, np.ndarray]:
        members: list[tuple[int, int]] = []
        firsts: list[int] = []
        names: list[bytes] = []
        before: str | None = None
        try:
            with open_file(self.path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # tarfile would store all members
                    if not member.isfile() or name_of(member.name).startswith("."):
                        continue
                    key = split_member(member.name)[0]
                    if key != before:
                        firsts.append(len(members))
                        before = key
                    members.append((member.offset_data, member.size))
                    names.append(member.name.encode("utf-8", "surrogateescape"))
        except (tarfile.TarError, EOFError) as error:
            raise UserError(
                f"{self.path!r} cannot be read as a tar file ({error}). Compressed shards have no random access. "
                "Unpack a .tar.gz to a .tar"
            ) from error
        return {
            "members": np.array(members, dtype=np.int64).reshape(-1, 2),
            "firsts": np.array([*firsts, len(members)], dtype=np.int64),
            "names": np.frombuffer(b"".join(names), dtype=np.uint8),
            "ends": np.cumsum([len(name) for name in names], dtype=np.int64),
        }

    def __len__(self) -> int:
        return len(self.index["firsts"]) - 1

    def key(self, number: int) -> str:
        return split_member(self._name(int(self.index["firsts"][number])))[0]

    def where(self, number: int) -> str:
        return f"{self.name}:{self.key(number)}"

    def entry(self, number: int) -> dict[str, SpanBlob]:
        """Return ending -> member of an entry.

        Raises:
            SampleError: two members have one name.
        """
        first, stop = (int(n) for n in self.index["firsts"][number : number + 2])
        blobs: dict[str, SpanBlob] = {}
        for place in range(first, stop):
            start, size = (int(n) for n in self.index["members"][place])
            name = self._name(place)
            ending = split_member(name)[1]
            if ending in blobs:
                raise SampleError(
                    f"the shard has two members {blobs[ending].member!r}"
                    + ("" if blobs[ending].member == name else f" and {name!r}, which differ in upper and lower case"),
                    where=self.where(number),
                    kind="duplicate_member",
                    remedy="Write the shard anew with one of them",
                )
            blobs[ending] = SpanBlob(self.path, start, size, name, self.digest)
        return blobs

    def advice(self, entry: Mapping[str, SpanBlob]) -> str:
        """Return a possible reason why members of one key are not in one entry; "" if there is no sign of one."""
        dotted = next((blob.member for ending, blob in entry.items() if "." in ending), None)
        if dotted is not None:
            key, ending = split_member(dotted)
            return f"A key ends at the first dot: {dotted!r} has the key {key!r} and the ending {ending!r}. Rename it"
        key = split_member(next(iter(entry.values())).member)[0]
        if self._entries_of_keys[key] > 1:
            return "Other members of this key stand elsewhere in the shard: sort it, `tar --sort=name`"
        return ""

    @cached_property
    def _entries_of_keys(self) -> Counter[str]:
        """Return key -> number of entries. It is more than one if the members of a key are not neighbours."""
        return Counter(self.key(number) for number in range(len(self)))

    def _name(self, place: int) -> str:
        ends = self.index["ends"]
        start = int(ends[place - 1]) if place else 0
        return self.index["names"][start : int(ends[place])].tobytes().decode("utf-8", "surrogateescape")


def split_member(name: str) -> tuple[str, str]:
    """Split a member's name into key and ending in lower case: "a/0017.seg.PNG" -> ("a/0017", "seg.png")."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return folder + slash + stem, ending.lower()
