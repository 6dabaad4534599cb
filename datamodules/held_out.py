"""Held-out documents of files: sound ones alone, or an error before anything is trained."""

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
    """The documents that are asked, each with an answer to compare with.

    Every picture is decoded once, because a damaged one would end a run only when it is asked about. Of a conversation
    that ends in a question, the last answered question is asked.

    Args:
        source: documents by number.
        on_bad_sample: fail raises at the first document that is broken, before any is asked; skip and quarantine leave
            it out with a line on standard error.
    """

    def __init__(self, source: Source, on_bad_sample: BadSample) -> None:
        self.source, self.on_bad_sample = source, on_bad_sample
        self.sound: list[Document] = []
        self.next = 0  # number of the first document that was not looked at
        self.num_broken = 0

    def documents(self, count: int | None = None) -> list[Document]:
        """The first sound documents.

        Args:
            count: number of documents; None for all.
        Raises:
            UserError: a document is broken and `on_bad_sample` is fail, or all of them are.
        """
        size = len(self.source)
        is_whole = count is None or self.on_bad_sample == "fail"
        while self.next < size and (is_whole or len(self.sound) < count):
            self._look(self.next)
            self.next += 1
        if size and count != 0 and not self.sound:
            raise UserError(f"all {size} held-out documents are broken. Correct them, or name no held-out data")
        return self.sound[:count]

    def _look(self, number: int) -> None:
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
    """A conversation up to its last answer; a page as it is."""
    answers = [number for number, turn in enumerate(document.turns) if turn.role == "assistant"]
    return replace(document, turns=document.turns[: answers[-1] + 1]) if answers else document
