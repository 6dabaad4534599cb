"""`data show` prints one sample as the model reads it, with its label mask and its views."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lit_mm.commands.data_sources import declared, parsed
from lit_mm.documents.printable import visible
from lit_mm.errors import UserError, counted

if TYPE_CHECKING:  # seconds of import, which --help and a misspelt option need not wait for
    import numpy as np
    from PIL import Image
    from rich.text import Text

    from lit_mm.samples.processor import Processor, Sample

GAP = 4  # pixels between views


def show(choices: argparse.Namespace) -> None:
    """Print a sample as the model reads it, with supervised tokens in colour, and write its views to one picture."""
    from rich.console import Console

    from lit_mm.stream.split import Split

    processor, documents = processor_and_documents(choices)
    if not 0 <= choices.index < len(documents):
        rest = "; held-out rows are not among them" if isinstance(documents, Split) else ""
        raise UserError(
            f"there are {len(documents)} samples, from 0 to {len(documents) - 1}{rest}; got {choices.index}"
        )
    sample = processor.lay_out(documents[choices.index])
    length, document = sample.length, sample.document
    views = processor.views(sample) if length.views else []
    output = choices.output or f"sample-{choices.index}.png"
    if views:
        try:
            side_by_side([as_image(view.numpy(), processor) for view in views]).save(output)
        except (OSError, ValueError) as error:
            raise UserError(
                f"the views cannot be written to {output!r} ({error}). Choose a .png with --output"
            ) from error
    visual = sum(stop - start for start, stop in sample.spans)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"sample {document.id!r} of {visible(document.source or 'its source')}", markup=False)
    pictures = f"{counted(len(document.pictures), 'picture')}, {counted(length.views, 'view')}"
    console.print(
        f"{length.tokens} tokens: {length.supervised} learnt, {visual} of pictures ({pictures}); "
        f"the model takes {processor.max_length}",
        markup=False,
    )
    console.print(marked(sample, processor, coloured=console.is_terminal and console.color_system is not None))
    if processor.reading is not None:
        second = processor.reading(document)
        console.print(f"second text, {len(second)} tokens: {processor.reading.decoded(document)}", markup=False)
    if views:
        console.print(f"{counted(len(views), 'view')} of it: {output}", markup=False)


def marked(sample: Sample, processor: Processor, *, coloured: bool) -> Text:
    """Return the sample's text with marks at its supervised tokens and a short note in place of each picture.

    Args:
        coloured: True marks supervised text by a colour, False by {+ and +}.
    """
    from rich.text import Text

    from lit_mm.samples.batch import IGNORE

    learnt = sample.labels != IGNORE
    learnt[:1] = False  # no position predicts the first token
    text = Text()
    pictures = {start: number for number, (start, stop) in enumerate(sample.spans) if stop > start}
    at = 0
    while at < len(sample):
        if at in pictures:
            number = pictures[at]
            stop = sample.spans[number][1]
            picture = sample.document.pictures[number]
            size = f"{picture.width} x {picture.height}"
            text.append(f"[picture {number + 1}: {size}, {stop - at} tokens]", style="cyan")
            at = stop
            continue
        stop = at + 1
        while stop < len(sample) and learnt[stop] == learnt[at] and stop not in pictures:
            stop += 1
        piece = visible(processor.tokenizer.decode(sample.input_ids[at:stop].tolist(), skip_special=False))
        if learnt[at]:
            text.append(piece if coloured else f"{{+{piece}+}}", style="bold green")
        else:
            text.append(piece)
        at = stop
    return text


def as_image(view: np.ndarray, processor: Processor) -> Image.Image:
    """Turn a normalised view [3, H, W] into an image with its original colours."""
    import numpy as np
    from PIL import Image

    mean, std = (np.array(x).reshape(3, 1, 1) for x in (processor.normalise.mean, processor.normalise.std))
    pixels = np.clip((view * std + mean) * 255, 0, 255).round().astype(np.uint8)
    return Image.fromarray(pixels.transpose(1, 2, 0))


def side_by_side(views: Sequence[Image.Image]) -> Image.Image:
    """Draw all views in order on a grey sheet with about as many rows as columns."""
    from PIL import Image

    columns = max(1, round(len(views) ** 0.5 + 0.49))
    width, height = max(view.width for view in views) + GAP, max(view.height for view in views) + GAP
    rows = -(-len(views) // columns)
    sheet = Image.new("RGB", (min(columns, len(views)) * width + GAP, rows * height + GAP), "#808080")
    for number, view in enumerate(views):
        sheet.paste(view, (GAP + number % columns * width, GAP + number // columns * height))
    return sheet


def processor_and_documents(choices: argparse.Namespace) -> tuple[Processor, Any]:
    """Return the processor of the stage that `--stage` names, or of the first stage, and the documents.

    Raises:
        UserError: the recipe has no such stage.
    """
    cli = parsed(choices.recipe, build=True)
    stages = {stage.name: stage for stage in cli.stages}
    if choices.stage is not None and choices.stage not in stages:
        raise UserError(f"--stage names {choices.stage!r}; the recipe has {list(stages)}")
    stage = stages[choices.stage] if choices.stage else next(iter(stages.values()), None)
    processor = cli.model.processor if stage is None else cli.model.processor_of(stage)
    if choices.source is not None:
        return processor, declared(choices.source)
    return processor, (cli.datamodule if stage is None else cli.data_of(stage)).source()
