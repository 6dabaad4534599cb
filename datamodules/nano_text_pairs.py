"""Pages of the nano world as text, each with one question and answer, for encoder-decoders that read text."""

from __future__ import annotations

from dataclasses import replace

from lit_mm.datamodules.nano import heldout_count
from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.nano.text import reading_document
from lit_mm.stream.datamodule import Source, StreamDataModule
from lit_mm.stream.order import stable_hash


class NanoPairs:
    """A source of pairs, indexed by number: even numbers ask about a page, odd numbers ask for its transcript.

    A page occurs in `questions` pairs with one question each; if it offers fewer questions, they are repeated.

    Args:
        count: number of pairs.
        questions: number of pairs with questions per page.
        split: split of the nano world, one of `lit_mm.nano.world.SPLITS`.
        seed: seed of the nano world.
    """

    def __init__(self, count: int, *, questions: int, split: str, seed: int) -> None:
        self.count, self.questions, self.split, self.seed = count, questions, split, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Document:
        if number % 2:
            return reading_document(number, split=self.split, seed=self.seed)
        page, turn = divmod(number // 2, self.questions)
        document = reading_document(2 * page, split=self.split, seed=self.seed, questions=self.questions)
        return one_question(document, turn % (len(document.turns) // 2))


def one_question(document: Document, number: int) -> Document:
    """Reduce a document with several questions to the page, question `number` (from 0) and its answer.

    The page is in the first user turn, on the lines before the first question.
    """
    if number == 0:
        return replace(document, turns=document.turns[:2])
    page, _ = document.turns[0].text.rsplit("\n", 1)
    question, answer = document.turns[2 * number : 2 * number + 2]
    turn = Turn("user", (f"{page}\n{question.text}",))
    return replace(document, id=f"{document.id}/{number}", turns=(turn, answer))


class NanoTextPairs(StreamDataModule):
    """This data module alternates (page as text, question) -> answer and (page as text, instruction) -> page.

    Args:
        pairs: number of training pairs.
        questions: number of pairs with questions per page.
        split: split of the nano world for training, one of train, heldout, text and pixels.
        heldout_documents: number of held-out documents, balanced over all skills, with one question each.
        world_seed: seed of the generated pages, independent of the seed of the run.
        global_batch, micro_batch, row_tokens, window, num_workers: see `StreamDataModule`. The tokens of a row are
            those of encoder and decoder together.
    Raises:
        UserError: `pairs` or `questions` is below 1.
    """

    def __init__(
        self,
        pairs: int = 200_000,
        questions: int = 3,
        split: str = "text",
        heldout_documents: int = 450,
        world_seed: int = 0,
        global_batch: int = 32,
        micro_batch: int | None = None,
        row_tokens: int | None = 128,
        window: int = 1024,
        num_workers: int = 1,
    ) -> None:
        super().__init__(global_batch, micro_batch, row_tokens, window=window, num_workers=num_workers)
        if pairs < 1 or questions < 1:
            raise UserError(
                f"`data.init_args` needs at least one pair and one question a page, got {pairs=}, {questions=}"
            )
        self.pairs, self.questions, self.split = pairs, questions, split
        self.heldout_documents, self.world_seed = heldout_documents, world_seed

    def source(self) -> Source:
        seed = stable_hash(self.world_seed, "pairs")
        return NanoPairs(self.pairs, questions=self.questions, split=self.split, seed=seed)

    def heldout(self, count: int | None = None) -> list[Document]:
        """Return questions about pages of the "heldout" split as text, with skills in turn."""
        count = heldout_count(count, self.heldout_documents)
        return [reading_document(2 * i, split="heldout", seed=self.world_seed, questions=1) for i in range(count)]
