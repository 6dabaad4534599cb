"""The templates of MiniGPT-4: plain captions in the first stage, descriptions after an instruction in the second."""

from __future__ import annotations

from dataclasses import dataclass

from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.prompts.blip2 import caption_of, draw
from lit_mm.prompts.prompt import PictureRun, Run, TextRun
from lit_mm.prompts.tokenizer import Tokenizer

SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions."
)
TEMPLATES = {  # name -> text with {} at the place of pictures and instruction, and text behind an answer
    "plain": ("", "\n"),
    "vicuna": ("###Human: {} ###Assistant: ", "###"),
    "vicuna_chat": (f"{SYSTEM}###Human: {{}}###Assistant: ", "###"),
    "llama_2": ("[INST] {} [/INST] ", "</s>"),
    "llama_2_chat": (f"{SYSTEM}<s>[INST] {{}} [/INST] ", "</s>"),
}
ALIGNMENT = (
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
)


@dataclass(frozen=True)
class MiniGPT4Prompt:
    """Writes BOS, the template around `<Img>` pictures `</Img>` and the instruction, then the answer and its end.

    The answer and its end are learnt. The template "plain" has neither `<Img>` nor an instruction. Text before the
    pictures, text after them and the answer are tokenised apart, as in the release. `<Img>`, `</Img>` and `###` are
    ordinary text.

    Example: `<s>###Human: <Img>` pictures `</Img> Describe this image in detail. ###Assistant: ` `a cat on a mat###`.

    Attributes:
        template: name in `TEMPLATES`, or a text with {} at the place of pictures and instruction. Published: "plain" in
            the first stage; "vicuna" or "llama_2" in the second; with "_chat" for the trained model.
        end: text behind an answer; None takes that of the named template.
        instructions: instructions for documents whose user turn has no text; the id of a document draws one. The
            release draws one per batch.
        max_tokens: largest number of tokens of the answer with its end; a longer answer loses its end. Published: 32
            in the first stage, 160 in the second.
        clean: True writes answers in lower case and without punctuation, see `lit_mm.prompts.caption.clean_caption`, as
            in the first stage.
    Raises:
        UserError: the template is neither a name nor a text with one {}, a text has no `end`, or there is no
            instruction.
    Source: minigpt4/models/minigpt_base.py, minigpt4/conversation/conversation.py, prompts/alignment.txt and demo.py of
        github.com/Vision-CAIR/MiniGPT-4 d94738a. The paper prints the template without blanks.
    """

    template: str = "vicuna"
    end: str | None = None
    instructions: tuple[str, ...] = ALIGNMENT
    max_tokens: int = 160
    clean: bool = False

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES and (self.template.count("{}") != 1 or not self.end):
            raise UserError(
                f"MiniGPT4Prompt: `template` is one of {list(TEMPLATES)}, or a text with one {{}} and an `end`, got "
                f"{self.template!r} with end={self.end!r}"
            )
        if not self.instructions:
            raise UserError("MiniGPT4Prompt: `instructions` is empty. To use the published ones, leave it out")

    @property
    def texts(self) -> tuple[str, str]:
        """The text of the template, and the text behind an answer."""
        text, end = TEMPLATES.get(self.template, (self.template, ""))
        return text, end if self.end is None else self.end

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """See `Prompt.runs`. A document without its answer ends with the template.

        Raises:
            UserError: the document is not one answer with pictures before it, see `lit_mm.prompts.blip2.caption_of`.
        """
        answer = caption_of(document, "MiniGPT4Prompt", self.clean)
        pieces = self.pieces(document)
        start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        runs = [unlearnt([*start, *tokenizer.encode(pieces[0])] if pieces[0] else start)]
        for number, piece in enumerate(pieces[1:]):
            runs += [PictureRun(number), unlearnt(tokenizer.encode(piece) if piece else [])]
        if answer is not None:
            ids = tokenizer.encode(answer + self.texts[1])[: self.max_tokens]
            runs.append(TextRun(ids, [True] * len(ids)))
        return [run for run in runs if isinstance(run, PictureRun) or run.ids]

    def pieces(self, document: Document) -> list[str]:
        """Return the texts before, between and after the pictures: one more than there are pictures."""
        text, count = self.texts[0], len(document.pictures)
        if not text:
            return [""] * (count + 1)
        instruction = document.without_line_ends().question.strip()
        instruction = instruction or self.instructions[draw(document, len(self.instructions))]
        before, after = text.split("{}")
        return [f"{before}<Img>", *["</Img><Img>"] * (count - 1), f"</Img> {instruction}{after}"]

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Return the ids of eos, and of an end that is a single token."""
        return frozenset({tokenizer.eos_id, *(ids[0] for ids in self._ends(tokenizer) if len(ids) == 1)})

    def stop_sequences(self, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
        """Return the ends of several tokens. Llama's tokenizer writes "###" as 835, and as 2277 29937 behind a word."""
        single = self.stop_ids(tokenizer)
        return tuple(sorted({ids for ids in self._ends(tokenizer) if len(ids) > 1 and ids[-1] not in single}))

    def _ends(self, tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the token ids of the end, behind a word and alone."""
        _, end = self.texts
        behind = tokenizer.encode(f"a{end}")[len(tokenizer.encode("a")) :]
        return tuple(behind), tuple(tokenizer.encode(end))


def unlearnt(ids: list[int]) -> TextRun:
    """Build a run of tokens without loss."""
    return TextRun(ids, [False] * len(ids))
