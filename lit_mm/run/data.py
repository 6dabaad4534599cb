"""Comparison of a resumed stage's data with the data of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_mm.documents.sources import Source
from lit_mm.documents.sources.digest import changes, digest_of
from lit_mm.errors import UserError
from lit_mm.stream.datamodule import StreamDataModule


def sources_of(data: StreamDataModule) -> dict[str, Source]:
    """Return name -> source for the sources of a stage that read files. The stage must have begun."""
    if data.screen is None:  # a data module of pixels alone plans no samples
        return {}
    documents = data.screen.maker.documents
    pairs = zip(documents.names, documents.sources, strict=True)
    return {name: source for name, source in pairs if isinstance(source, Source)}


def digests(data: StreamDataModule) -> dict[str, Any]:
    """Return name -> digest for the sources of a stage that read files."""
    return {name: digest_of(source) for name, source in sources_of(data).items()}


def data_changes(earlier: Mapping[str, Any], data: StreamDataModule) -> dict[str, str]:
    """Compare the data of a stage with a checkpoint; return source -> difference in words, for sources that differ.

    Args:
        earlier: source -> digest in the checkpoint. A source without a digest there (older checkpoints have none) is
            not compared.
        data: data module of the stage.
    """
    sources = sources_of(data)
    if len(earlier) == len(sources) == 1:  # a single source may bear the name of a file that has moved
        earlier = dict(zip(sources, earlier.values(), strict=True))
    differences = {name: changes(entry, sources[name]) for name, entry in earlier.items() if name in sources}
    differences |= {name: ["it is not there any more"] for name in earlier.keys() - sources.keys()}
    return {name: "; ".join(lines) for name, lines in sorted(differences.items()) if lines}


def check_data(earlier: Mapping[str, Any], data: StreamDataModule, stage: str, *, other_data: bool) -> dict[str, str]:
    """Return the differences of a stage's data from its checkpoint; see `data_changes`.

    Args:
        earlier: source -> digest in the checkpoint.
        data: data module of the stage.
        stage: name of the stage, for the message.
        other_data: True allows differences.
    Raises:
        UserError: the data differ and `other_data` is False.
    """
    differences = data_changes(earlier, data)
    if differences and not other_data:
        listed = "; ".join(f"{name}: {difference}" for name, difference in differences.items())
        raise UserError(
            f"the data of stage {stage!r} differ from those of its checkpoint. {listed}. Restore them, or "
            "continue with the new data with --other_data, which the ledger records"
        )
    return differences
