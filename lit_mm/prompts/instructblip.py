"""The template of InstructBLIP: visual tokens, instruction, and the response, which is learnt."""

from __future__ import annotations

from dataclasses import dataclass

from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.prompts.prompt import PictureRun, Run, TextRun
from lit_mm.prompts.tokenizer import Tokenizer

ROLES = (("user", "assistant"), ("user",))


@dataclass(frozen=True)
class InstructBlipPrompt:
    """Writes the pictures, the instruction, and the response with its end, which is learnt.

    Instruction and response are tokenised apart. A long instruction loses its start, a long response its end. With a
    decoder a first token precedes the instruction. With an encoder-decoder the encoder reads the instruction and eos,
    and the decoder writes the response and eos, which a cut keeps.

    Example: the instruction "what is it" and the response "a cat" are `<pictures></s> what is it a cat</s>` for a
    decoder. An encoder reads `<pictures> what is it</s>` and its decoder writes `a cat</s>`.

    Attributes:
        first: first token of a decoder's text. The release sets BOS to "</s>". "": none; None: BOS of the tokenizer.
        writes_target: True for an encoder-decoder.
        max_instruction: largest number of tokens of the instruction, with the first token or eos.
        max_response: largest number of tokens of the response, with its end, and with the first token of a decoder,
            which the release tokenises before the response and drops.
        question: template of the instruction; BLIP-2 asks a decoder "Question: {question} Answer:".
        end: text of one token that ends a response in place of eos; BLIP-2 with OPT: a newline. "": eos.
    Raises:
        UserError: a limit leaves no room for a token of text, or the template does not hold its placeholder once.
    Source: lavis/models/blip2_models/blip2_vicuna_instruct.py and blip2_t5_instruct.py of github.com/salesforce/LAVIS.
    """

    first: str | None = "</s>"
    writes_target: bool = False
    max_instruction: int = 128
    max_response: int = 256
    question: str = "{question}"
    end: str = ""

    def __post_init__(self) -> None:
        if min(self.max_instruction, self.max_response) < 3:
            raise UserError(
                "InstructBlipPrompt: `max_instruction` and `max_response` are at least 3 tokens, got "
                f"{self.max_instruction} and {self.max_response}"
            )
        if self.question.count("{question}") != 1:
            raise UserError(f"InstructBlipPrompt: `question` must contain {{question}} once, got {self.question!r}")

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """See `Prompt.runs`. A document without its response ends with the instruction.

        Raises:
            UserError: the document is not one instruction with at most one response.
        """
        document = document.without_line_ends()
        if tuple(turn.role for turn in document.turns) not in ROLES:
            raise UserError(
                f"document {document.id!r}: InstructBlipPrompt takes one user turn and at most one assistant turn, got "
                f"the turns {[turn.role for turn in document.turns]}. Give one document per question"
            )
        start = self.start(tokenizer)
        end = [tokenizer.eos_id] if self.writes_target else []
        text = document.turns[0].text.strip()
        ids = tokenizer.encode(self.rendered(text) if text else "")
        room = self.max_instruction - len(start) - len(end)
        instruction = [*start, *ids[max(0, len(ids) - room) :], *end]
        runs: list[Run] = [PictureRun(number) for number in range(len(document.pictures))]
        runs.append(TextRun(instruction, [False] * len(instruction)))
        if len(document.turns) == 2:
            response = self.response(document.turns[1].text.strip(), tokenizer, self.max_response - len(start))
            runs.append(TextRun(response, [True] * len(response)))
        return runs

    def rendered(self, question: str) -> str:
        """Return the instruction of a question."""
        return self.question.replace("{question}", question)

    def start(self, tokenizer: Tokenizer) -> list[int]:
        """Return the first token of a decoder's text as a list; [] if there is none."""
        if self.writes_target or self.first == "":
            return []
        if self.first is not None:
            return [tokenizer.id_of(self.first)]
        return [] if tokenizer.bos_id is None else [tokenizer.bos_id]

    def response(self, text: str, tokenizer: Tokenizer, room: int) -> list[int]:
        """Return the tokens of a response and its end, at most `room` of them."""
        ids = tokenizer.encode(text)
        if self.writes_target:
            ids = ids[: room - 1]
        return [*ids, self.end_id(tokenizer)][:room]

    def end_id(self, tokenizer: Tokenizer) -> int:
        """Return the id of the token that ends a response."""
        return tokenizer.encode(self.end)[-1] if self.end else tokenizer.eos_id

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Return the ids of the token that ends the response, and of eos."""
        return frozenset({self.end_id(tokenizer), tokenizer.eos_id})
