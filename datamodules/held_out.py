"""Held-out documents of files. Broken ones are left out, or end the run before it trains."""

from __future__ import annotations

import sys
from dataclasses import replace

from lightning.pytorch.utilities import rank_zero_only

from lit_mm.documents.document import Document
from lit_mm.documents.sources import SourcePicture
from lit_mm.errors import UserError
from lit_mm.stream.datamodule import Source
from lit_mm.stream.screen import BadSample

LISTED = 5  # documents left out that are listed; `quarantine` lists all
SMALL = (1, 1)  # decoding a JPEG at an eighth of its size shows whether it is whole


class HeldOut:
    """Held-out documents, each of which ends in an answer to compare with.

    Every picture is decoded once before training; otherwise a damaged one would end the run at its examination. A
    conversation that ends in a question is cut behind its last answer.

    Args:
        source: documents by number.
        on_bad_sample: policy for a broken document: "fail" raises an error, before any document is asked; "skip" and
            "quarantine" leave it out with a line on standard error.
    """

    def __init__(self, source: Source, on_bad_sample: BadSample) -> None:
        self.source, self.on_bad_sample = source, on_bad_sample
        self.sound: list[Document] = []
        self.next = 0  # number of the next document to check
        self.num_broken = 0

    def documents(self, count: int | None = None) -> list[Document]:
        """Return the first sound documents.

        Args:
            count: number of documents; None for all.
        Raises:
            UserError: a document is broken and `on_bad_sample` is fail, or all of them are.
        """
        size = len(self.source)
        is_whole = count is None or self.on_bad_sample == "fail"
        while self.next < size and (is_whole or len(self.sound) < count):
            self._check(self.next)
            self.next += 1
        if size and count != 0 and not self.sound:
            raise UserError(f"all {size} held-out documents are broken. Correct them, or leave held-out data out")
        return self.sound[:count]

    def _check(self, number: int) -> None:
        try:
            document = self.source[number]
            for picture in document.pictures:
                if isinstance(picture, SourcePicture):
                    picture.pixels(SMALL)
        except UserError as error:
            if self.on_bad_sample == "fail":
                raise
            self.num_broken += 1
            if self.num_broken <= LISTED or self.on_bad_sample == "quarantine":
                _print(f"lit_mm: a held-out document is left out: {error}")
            elif self.num_broken == LISTED + 1:
                _print("lit_mm: ... and more held-out documents; `data check` lists all")
            return
        self.sound.append(_answered(document))


@rank_zero_only
def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _answered(document: Document) -> Document:
    """Return a conversation up to its last answer; a page is unchanged."""
    answers = [number for number, turn in enumerate(document.turns) if turn.role == "assistant"]
    return replace(document, turns=document.turns[: answers[-1] + 1]) if answers else document
