"""The index of data files: arrays under a cache folder, named by content, written atomically, read as memory maps."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from lit_mm.errors import UserError

FORMAT = 4  # of the arrays; another number makes old indexes invisible
Arrays = Mapping[str, np.ndarray]


def cache_folder() -> Path:
    """Return the cache folder, `$LIT_MM_CACHE` or ~/.cache/lit_mm. The indexes lie in `index` below it."""
    return Path(os.environ.get("LIT_MM_CACHE") or Path.home() / ".cache" / "lit_mm")


def key_of(*parts: object) -> str:
    """Return the name of an index, which is a hash of everything that it depends on."""
    return hashlib.blake2b(repr((FORMAT, *parts)).encode(), digest_size=16).hexdigest()


def load(key: str) -> dict[str, np.ndarray] | None:
    """Open the arrays of an index as read-only memory maps, which processes share. Return None if there is no index.

    Raises:
        UserError: a file of the index is damaged.
    """
    folder = _folder(key)
    if not folder.is_dir():
        return None
    try:
        return {
            file.stem: np.load(file, mmap_mode="r" if file.stat().st_size > 4096 else None)
            for file in sorted(folder.glob("*.npy"))
        }
    except (ValueError, EOFError, OSError) as error:
        raise UserError(
            f"the index in {str(folder)!r} is damaged ({error}). Delete the folder; the next start creates it again"
        ) from error


def store(key: str, arrays: Arrays) -> dict[str, np.ndarray]:
    """Publish an index in one atomic step, and open it. If several processes publish equal indexes, the first stays.

    Raises:
        UserError: the cache folder cannot be written.
    """
    folder = _folder(key)
    aside = _make_aside(folder)
    try:
        for name, array in arrays.items():
            _write(aside / f"{name}.npy", array)
        try:
            os.rename(aside, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster
                raise
    except OSError as error:
        raise unwritable(error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return load(key)


def forget(key: str) -> None:
    """Remove an index, and the chunks of an unfinished one."""
    for folder in (_folder(key), _partial(key)):
        if folder.is_dir():
            shutil.rmtree(folder)


def resume(key: str, chunks: int, make: Callable[[int], np.ndarray]) -> list[np.ndarray]:
    """Make an index chunk by chunk. Each chunk is stored at once, so an interrupted call continues at the next chunk.

    Args:
        key: name of the index. Its chunks are stored beside it until `finish`.
        chunks: number of chunks.
        make: function from the number of a chunk to its array. It is not called for stored chunks.
    """
    folder = _partial(key)
    pieces = []
    for number in range(chunks):
        file = folder / f"{number:06d}.npy"
        if not file.is_file():
            array = make(number)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                aside = folder / f".{number:06d}.{os.getpid()}"
                _write(aside, array)
                os.replace(aside, file)
            except OSError as error:
                raise unwritable(error) from error
        pieces.append(np.load(file))
    return pieces


def finish(key: str, arrays: Arrays) -> dict[str, np.ndarray]:
    """Publish arrays that `resume` has made, and remove their chunks."""
    published = store(key, arrays)
    shutil.rmtree(_partial(key), ignore_errors=True)
    return published


def _folder(key: str) -> Path:
    return cache_folder() / "index" / key


def _partial(key: str) -> Path:
    return cache_folder() / "index" / f"{key}.partial"


def _make_aside(folder: Path) -> Path:
    try:
        aside = folder.parent / f".making-{uuid.uuid4().hex}"
        aside.mkdir(parents=True)
        return aside
    except OSError as error:
        raise unwritable(error) from error


def _write(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())


def unwritable(error: OSError) -> UserError:
    """Return the error of a cache folder that cannot be written."""
    return UserError(
        f"the index cannot be written to {str(cache_folder())!r} ({error.strerror}). Set LIT_MM_CACHE to "
        "a folder with free space"
    )
