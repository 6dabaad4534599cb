"""The files of a data set that an engine writes. Their bytes depend on rows, engine and seed alone."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_mm.annotation.inputs import Inputs
from lit_mm.run.files import whole_file, write_whole

ACCOUNTS, WORK, PLAN, LEDGER, PAGE, SPEED = (
    "accounts",
    "work",
    "engine.json",
    "ledger.json",
    "page.html",
    "throughput.jsonl",
)


def shard_path(folder: Path, subset: str, shard: int) -> Path:
    """Return the path of the tar of a shard."""
    return folder / f"{subset}-{shard:06d}.tar"


def accounts_path(folder: Path, shard: int) -> Path:
    """Return the path of the accounts of a shard, whose existence says that the shard is finished."""
    return folder / ACCOUNTS / f"{shard:06d}.jsonl"


def journal_path(folder: Path, shard: int) -> Path:
    """Return the path of the journal of an unfinished shard."""
    return folder / WORK / f"{shard:06d}.jsonl"


def write_shard(folder: Path, shard: int, accounts: Sequence[dict[str, Any]], inputs: Inputs) -> None:
    """Write the tars of a shard, and then its accounts.

    A tar holds `key.jpg`, the image file of the source, `key.txt`, the text, and `key.json`, its origin. The key is the
    number of the row. A subset without a text in this shard has no tar.
    """
    by_subset: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for account in accounts:
        for output in account["outputs"]:
            by_subset.setdefault(output["subset"], []).append((account, output))
    for subset, entries in sorted(by_subset.items()):
        with (
            whole_file(shard_path(folder, subset, shard), synced=True) as part,
            tarfile.open(part, "w", format=tarfile.GNU_FORMAT) as tar,
        ):
            for account, output in entries:
                ending, image = inputs.entry(account["row"]).image_file()
                key = f"{account['row']:09d}"
                _add(tar, f"{key}.{ending}", image)
                _add(tar, f"{key}.txt", output["text"].encode())
                _add(tar, f"{key}.json", _json(origin(account, output)))
    path = accounts_path(folder, shard)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, b"".join(_json(account) + b"\n" for account in accounts), synced=True)


def origin(account: Mapping[str, Any], output: Mapping[str, Any]) -> dict[str, Any]:
    """Return the origin of a text: its row with the licence of the source, and the expert that wrote it."""
    return {
        "id": account["id"],
        "source": account["source"],
        "where": account["where"],
        "licence": account["licence"],
        "text_by": account["experts"].get(output["expert"]) if output["expert"] else "the source",
    }


def read_accounts(folder: Path, shards: int) -> Iterator[dict[str, Any]]:
    """Yield the accounts of all rows, in source order."""
    for shard in range(shards):
        with accounts_path(folder, shard).open("rb") as file:
            for line in file:
                yield json.loads(line)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a member without time and owner, so that equal content gives equal bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
