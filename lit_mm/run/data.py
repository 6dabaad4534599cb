"""Whether a stage that resumes reads the data that it began with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_mm.documents.sources import Source
from lit_mm.documents.sources.digest import changes, digest_of
from lit_mm.errors import UserError
from lit_mm.stream.datamodule import StreamDataModule


def sources_of(data: StreamDataModule) -> dict[str, Source]:
    """The sources of a stage that read files, by name. The stage has begun."""
    if data.screen is None:  # it plans no samples
        return {}
    documents = data.screen.maker.documents
    pairs = zip(documents.names, documents.sources, strict=True)
    return {name: source for name, source in pairs if isinstance(source, Source)}


def digests(data: StreamDataModule) -> dict[str, Any]:
    """The digest of every source of a stage that reads files, by name."""
    return {name: digest_of(source) for name, source in sources_of(data).items()}


def data_changes(earlier: Mapping[str, Any], data: StreamDataModule) -> dict[str, str]:
    """What is different in the data of a stage since a checkpoint of it: source -> the difference in words.

    Args:
        earlier: the digests in the checkpoint. A source without a digest there, as in checkpoints of before, is not
            compared.
    """
    sources = sources_of(data)
    if len(earlier) == len(sources) == 1:  # the name of an only source may be that of a file that was moved
        earlier = dict(zip(sources, earlier.values(), strict=True))
    differences = {name: changes(entry, sources[name]) for name, entry in earlier.items() if name in sources}
    differences |= {name: ["it is not there any more"] for name in earlier.keys() - sources.keys()}
    return {name: "; ".join(lines) for name, lines in sorted(differences.items()) if lines}


def check_data(earlier: Mapping[str, Any], data: StreamDataModule, stage: str, *, other_data: bool) -> dict[str, str]:
    """The differences of a stage's data since its checkpoint, if the user allows any.

    Args:
        earlier: the digests in the checkpoint.
        stage: name of the stage, for the message.
        other_data: go on all the same.
    Raises:
        UserError: the data are not the same, and that is not allowed.
    """
    differences = data_changes(earlier, data)
    if differences and not other_data:
        listed = "; ".join(f"{name}: {difference}" for name, difference in differences.items())
        raise UserError(
            f"the data of stage {stage!r} are not those that its checkpoint was trained on. {listed}. Put them back, "
            "or go on with these, which is written to the ledger, with --other_data"
        )
    return differences
