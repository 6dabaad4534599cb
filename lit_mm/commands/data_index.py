"""`data index` stores the sizes of pictures and the lengths of samples."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lit_mm.commands.data_sources import parsed, sources_of, stages_of
from lit_mm.stream.progress import bar

if TYPE_CHECKING:  # seconds of import, which --help and a misspelt option need not wait for
    from lit_mm.stages.stage import Stage
    from lit_mm.stream.maker import SampleMaker

EXPLAINED = 5  # samples of a source that cannot be trained on and are listed with their reasons


def index(choices: argparse.Namespace) -> None:
    """Store the size of every picture and, with a recipe, the length of every sample, so that later starts are fast.

    After an interruption the same command continues.
    """
    from lit_mm.documents.sources import Source
    from lit_mm.documents.sources.cache import cache_folder

    for name, source in sources_of(choices):
        if not isinstance(source, Source):
            print(f"{name}: {len(source)} samples are generated, there is nothing to index")
            continue
        if choices.rebuild:
            source.forget_index()
        with bar(f"indexing {name}", len(source)) as progress:
            pictures, unknown = source.build_index(progress)
        print(
            f"{name}: {len(source)} samples, {pictures} pictures; the index is in {cache_folder()}"
            + (f". {unknown} pictures could not be read: `python -m lit_mm data check` says why" if unknown else "")
        )

    if choices.source is None:
        index_lengths(choices)


def index_lengths(choices: argparse.Namespace) -> None:
    """Store the lengths of all samples, under the layout of every stage."""
    from lit_mm.stream import lengths
    from lit_mm.stream.datamodule import StreamDataModule

    cli = parsed(choices.recipe, build=True)
    counted = set()
    for stage in stages_of(cli, choices.stage):
        module = cli.data_of(stage)
        if not isinstance(module, StreamDataModule):  # this data module plans no samples
            continue
        processors = {0: cli.model.processor} if stage is None else cli.model.processors_of(stage)
        for step, processor in processors.items():
            maker = module.maker(processor)
            for source, key in enumerate(lengths.keys_of(maker)):
                if key is None or key in counted:
                    continue
                counted.add(key)
                if choices.rebuild:
                    lengths.forget(maker, source)
                index_source(maker, source, layout_name(stage, step))


def index_source(maker: SampleMaker, source: int, layout: str) -> None:
    """Store the lengths of one source, and print their number and the first samples that cannot be trained on.

    Args:
        maker: maker of the samples.
        source: number of the source in the maker's documents.
        layout: see `layout_name`.
    """
    from lit_mm.stream import lengths

    samples, name = maker.documents.sizes[source], maker.documents.names[source]
    with bar(f"lengths of {name}", samples) as progress:
        unknown = lengths.build(maker, source, progress)
    print(
        f"{name}: lengths of {samples} samples{layout}"
        + (f"; {unknown} of them cannot be trained on" if unknown else "")
    )
    for error in lengths.explain(maker, source, EXPLAINED):
        print(f"  {error.sample_id!r}: {error}")
    if unknown > EXPLAINED:
        print(f"  and {unknown - EXPLAINED} more, which `python -m lit_mm data check` lists")


def layout_name(stage: Stage | None, step: int) -> str:
    """Return a phrase for messages that names the layout of counted lengths."""
    if stage is None:
        return ""
    return f" as stage {stage.name!r} lays them out" + (f" from step {step} on" if step else "")
