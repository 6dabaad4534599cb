"""The nano world in the form of VILA's three corpora: captions, web pages with pairs, and questions with plain text."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Literal

from lit_mm.datamodules.nano import NanoSource, heldout_count
from lit_mm.documents.document import Document, Picture, Turn
from lit_mm.errors import UserError
from lit_mm.nano.text import reading_document
from lit_mm.nano.world import SKILLS, caption_document, page, question_document
from lit_mm.stream.datamodule import Source, StreamDataModule, WorkerStart
from lit_mm.stream.order import stable_hash

FEWEST, MOST = 2, 4  # pictures of a web page; the mean of three equals the three pairs that follow a page


def web_page(index: int, *, split: str, seed: int) -> Document:
    """Generate a web page of two to four pictures, each followed by its transcript.

    Half of the pages have one more sentence without a picture. Sentences are joined by a space, but there is no space
    beside a picture, as in VILA's MMC4.
    """
    rng = Random(stable_hash("web page", seed, split, index))
    pictures = [
        page(MOST * index + number, split=split, seed=seed, kind=rng.choice(SKILLS))
        for number in range(rng.randint(FEWEST, MOST))
    ]
    sentences: list[tuple[Picture | None, str]] = [(picture, picture.transcript) for picture in pictures]
    if rng.random() < 0.5:
        extra = caption_document(index, split=split, seed=stable_hash(seed, "unseen"))
        sentences.insert(rng.randrange(len(sentences) + 1), (None, extra.answer))
    parts: list[str | Picture] = []
    for number, (picture, sentence) in enumerate(sentences):
        if picture is not None:
            parts.append(picture)
        elif number:
            sentence = f" {sentence}"
        parts.append(sentence)
    return Document(f"{split}/web/{index:06d}", (Turn("page", tuple(parts)),), source="nano-web")


def pair(index: int, *, split: str, seed: int) -> Document:
    """Generate a picture (several for a story) followed by its transcript, as one page."""
    captioned = caption_document(index, split=split, seed=seed)
    turn = Turn("page", (*captioned.pictures, captioned.answer))
    return Document(f"{captioned.id}/pair", (turn,), source="nano-pairs", skill=captioned.skill)


class Blend:
    """A source that takes documents from several generators in turn.

    Args:
        makers: functions document number -> document. Document n comes from maker n modulo their number.
        count: number of documents.
    """

    def __init__(self, makers: tuple[Callable[[int], Document], ...], count: int) -> None:
        self.makers, self.count = makers, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Document:
        return self.makers[number % len(self.makers)](number)


class NanoInterleaved(StreamDataModule):
    """This data module generates pages to read in the forms of VILA's stages.

    Args:
        kind: kind of training documents. "captions" are pages with their transcripts. "interleaved" has one web page
            per three pairs of picture and text, so half of the pictures are in web pages. "blended" has one text
            without pictures per three documents with pictures and questions.
        documents: number of training documents.
        questions: largest number of questions per training document.
        heldout_documents: number of held-out documents, balanced over all skills, with one question each.
        world_seed: seed of the generated documents, independent of the seed of the run.
        global_batch, micro_batch, row_tokens, row_views, window, num_workers, worker_start: see `StreamDataModule`.
    Raises:
        UserError: `documents` or `questions` is below 1.
    Source: arXiv:2312.07533, sections 3.2 and 3.3: MMC4 and COYO about 1 : 1 in images; joint tuning with text alone.
    """

    def __init__(
        self,
        kind: Literal["captions", "interleaved", "blended"] = "interleaved",
        documents: int = 20_000,
        questions: int = 3,
        heldout_documents: int = 450,
        world_seed: int = 0,
        global_batch: int = 8,
        micro_batch: int | None = None,
        row_tokens: int | None = 512,
        row_views: int | None = None,
        window: int = 1024,
        num_workers: int = 1,
        worker_start: WorkerStart | None = None,
    ) -> None:
        super().__init__(
            global_batch,
            micro_batch,
            row_tokens,
            row_views,
            window,
            num_workers,
            worker_start=worker_start,
        )
        if documents < 1 or questions < 1:
            raise UserError(
                f"`data.init_args` needs at least 1 of `documents` and `questions`, got {documents} and {questions}"
            )
        self.kind, self.documents, self.questions = kind, documents, questions
        self.heldout_documents, self.world_seed = heldout_documents, world_seed

    def source(self) -> Source:
        seed = stable_hash(self.world_seed, self.kind)

        def make(maker: Callable[..., Document], **more: int) -> Callable[[int], Document]:
            return lambda number: maker(number, split="train", seed=seed, **more)

        pages = make(question_document, questions=self.questions)
        makers = {
            "captions": (make(caption_document),),
            "interleaved": (make(web_page), *[make(pair)] * 3),
            "blended": (make(reading_document, questions=self.questions), *[pages] * 3),
        }
        return Blend(makers[self.kind], self.documents)

    def heldout(self, count: int | None = None) -> list[Document]:
        count = heldout_count(count, self.heldout_documents)
        source = NanoSource("questions", count, split="heldout", seed=self.world_seed, skills=SKILLS, questions=1)
        return [source[i] for i in range(count)]
