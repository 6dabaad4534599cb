"""A prompt that follows the chat template of the tokenizer, a jinja text in the files of a checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import jinja2

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError, first_line
from lit_mm.prompts.prompt import Prompt, Run
from lit_mm.prompts.rendered import Part, Text, to_runs
from lit_mm.prompts.tokenizer import Tokenizer

# Noncharacters of Unicode, which texts do not contain: around the number of a picture, and two probe texts
OPEN, CLOSE, QUESTION, ANSWER = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
PICTURE_MARK = re.compile(f"{OPEN}([0-9]+){CLOSE}")
GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
RESERVED = frozenset(
    (
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversations",
        "messages",
        "return_assistant_tokens_mask",
    )
)
EXCERPT = 24  # characters of a rendered text in an error
LAST_CURE = "Set `answers: last` to learn the last answer of each document alone. "
TEMPLATE_CURE = "Set `variables` or `template` of the prompt so that the first turns do not depend on later ones"


@dataclass(frozen=True, slots=True)
class Form:
    """Properties of a chat template, measured on a conversation of one question and one answer.

    Attributes:
        markers: special tokens that the template writes.
        stop: special token that ends an answer.
        lead: text that the template writes between the generation prompt and an answer.
    """

    markers: tuple[str, ...]
    stop: str
    lead: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A document as a template reads it.

    Attributes:
        where: words that name the document in errors.
        roles: role of every turn.
        pieces: text and numbers of pictures of every turn.
    """

    where: str
    roles: tuple[str, ...]
    pieces: tuple[tuple[str | int, ...], ...]

    def first(self, number: int) -> Chat:
        """Return the first turns."""
        return Chat(self.where, self.roles[:number], self.pieces[:number])

    @property
    def waits(self) -> bool:
        """True if the assistant speaks next."""
        return self.roles[-1] != "assistant"

    def text(self, number: int) -> str:
        """Return the text of a turn without its pictures."""
        return "".join(piece for piece in self.pieces[number] if isinstance(piece, str))


class ChatTemplate:
    """Writes a chat with the tokenizer's chat template, as transformers does; works with any language model.

    Token ids equal those of transformers' `apply_chat_template`, except for an answer that merges with its prompt (see
    `lit_mm.prompts.rendered.encode_seam`). BOS is written by the template alone.

    - The learnt text of an answer starts at the end of the generation prompt and stops with the special token that ends
      the answer. Spaces at the end of a generation prompt belong to the answer.
    - A template with `{% generation %}` markers says by them which answers are learnt. Without markers all answers are
      learnt, and each answer is located by rendering the document turn by turn. The template must then be incremental:
      n turns, up to the end of the last answer, are a prefix of n + 1 turns. Others, such as Qwen3's, which drops the
      reasoning of earlier answers, are refused; `answers: last` works with them.
    - Generation stops at the end-of-sequence token and at the token that ends an answer. If the template writes a text
      such as an empty `<think></think>` before an answer, reasoning up to it is left out of the model's answer.
    - A page of pictures alone in front of a conversation moves to the front of its first question.

    Templates run in transformers' sandbox, which keeps them from files and from Python.

    Args:
        template: text of a chat template, or path of a `.jinja` file. None: the tokenizer's own.
        system: text of the system turn of documents without one. None: no turn is added; some templates then write a
            default text.
        variables: values of further variables of the template, such as {enable_thinking: false}.
        answers: "all", or "last": only an answer at the end of a document is learnt.
        markers: False ignores `{% generation %}` markers.
        image_start, image_end: texts around the visual tokens of a picture, such as special tokens of the model.
        placeholder: text that a multimodal template writes for a picture, such as "<|image_pad|>"; its messages are
            lists of parts. "": messages are texts, and a picture stands at its place in the text.
    Raises:
        UserError: `variables` has a reserved name, `placeholder` is used with `image_start` or `image_end`, or the file
            of `template` does not exist.
    Source: transformers, docs "Chat templates".
    """

    def __init__(
        self,
        template: str | None = None,
        system: str | None = None,
        variables: Mapping[str, Any] | None = None,
        answers: Literal["all", "last"] = "all",
        markers: bool = True,
        image_start: str = "",
        image_end: str = "",
        placeholder: str = "",
    ) -> None:
        if reserved := sorted(RESERVED & (variables or {}).keys()):
            raise UserError(f"ChatTemplate: `variables` cannot set {reserved}, which every document sets; remove them")
        if placeholder and (image_start or image_end):
            raise UserError(
                f"ChatTemplate: a template that writes {placeholder!r} for a picture also writes the texts around it; "
                "remove `image_start` and `image_end`, or `placeholder`"
            )
        if template is not None and template.endswith(".jinja"):
            file = Path(os.path.expanduser(template))
            if not file.is_file():
                raise UserError(f"ChatTemplate: the file {template!r} of `template` does not exist; correct its path")
            template = file.read_text(encoding="utf-8")
        self.template, self.system, self.variables = template, system, dict(variables or {})
        self.answers, self.markers = answers, markers
        self.image_start, self.image_end, self.placeholder = image_start, image_end, placeholder
        self.forms: dict[tuple[str, Tokenizer], Form] = {}

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """See `Prompt.runs`.

        Raises:
            UserError: the template refuses the document, is not incremental, or loses or moves text or a picture.
        """
        template = self._template(tokenizer)
        form = self._form(template, tokenizer)
        chat = self._chat(document, form)
        text, spans = self._render(chat, template, tokenizer)
        if chat.waits:
            text = text.rstrip(" ")
        self._check_text(text, chat)
        parts: list[Part] = []
        number = count()
        start = 0
        for begin, end in self._learnt(text, spans, chat, form, template, tokenizer):
            parts += [*self._pieces(text[start:begin], number), Text(text[begin:end], learn=True)]
            start = end
        parts += self._pieces(text[start:], number)
        pictures = [part for part in parts if isinstance(part, int)]
        if pictures != list(range(len(document.pictures))):
            raise UserError(
                f"{chat.where}: the chat template has to write {len(document.pictures)} pictures in order, it writes "
                f"{len(pictures)}. For a multimodal template set `placeholder` to its text of a picture, for others "
                "leave it out"
            )
        return to_runs(parts, tokenizer, form.stop, bos=False)

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Return the ids of eos and of the token that ends an answer."""
        return frozenset({tokenizer.id_of(self._form(self._template(tokenizer), tokenizer).stop), tokenizer.eos_id})

    def answer_text(self, ids: Sequence[int], document: Document, tokenizer: Tokenizer) -> str:
        """Convert generated token ids to text; see `lit_mm.prompts.prompt.ReadsAnswers`. Reasoning is left out."""
        lead = self._form(self._template(tokenizer), tokenizer).lead.split()
        text = tokenizer.decode(ids)
        return (text.rpartition(lead[-1])[2] if lead else text).strip()

    def settled(self, ids: Sequence[int], tokenizer: Tokenizer) -> int:
        """See `lit_mm.prompts.prompt.Settles`. Nothing is settled before the end of a reasoning."""
        lead = self._form(self._template(tokenizer), tokenizer).lead.split()
        return len(ids) if not lead or lead[-1] in tokenizer.decode(ids) else 0

    def _template(self, tokenizer: Tokenizer) -> str:
        """Return the text of the template."""
        template = self.template or tokenizer.chat_template
        if template is None:
            raise UserError(
                "ChatTemplate: the files of the tokenizer have no chat template. Copy the published "
                "chat_template.jinja beside them, or set `template` of the prompt to a text or a .jinja file"
            )
        return template

    def _form(self, template: str, tokenizer: Tokenizer) -> Form:
        """Measure the template once per tokenizer.

        Raises:
            UserError: the template drops the last answer, has no generation prompt, or ends an answer with no token.
        """
        if (template, tokenizer) in self.forms:
            return self.forms[template, tokenizer]
        turns = [("system", self.system)] * (self.system is not None) + [("user", QUESTION), ("assistant", ANSWER)]
        roles, texts = zip(*turns, strict=True)
        probe = Chat("the chat template, on a question and an answer", roles, tuple((text,) for text in texts))
        whole, _ = self._render(probe, template, tokenizer)
        opening, _ = self._render(probe.first(-1), template, tokenizer)
        opening = opening.rstrip(" ")
        if ANSWER not in whole:
            raise UserError(
                f"{probe.where}: the template drops an answer at the end of a chat, so nothing can be learnt. Set "
                "`template` to a template that writes it"
            )
        _check_prefix(opening, whole, probe.where, "the generation prompt", TEMPLATE_CURE)
        lead, _, ending = whole[len(opening) :].partition(ANSWER)
        silent, _ = self._render(probe.first(-1), template, tokenizer, opened=False)
        if lead.strip() and silent.rstrip(" ") == opening:
            raise UserError(
                f"{probe.where}: the template writes {lead!r} before an answer, but has no generation prompt. Set "
                "`template` to one that writes this text where `add_generation_prompt` is true"
            )
        markers = tuple(token for token in tokenizer.special_tokens if token and token in whole)
        stops = [(ending.index(token), -len(token), token) for token in markers if token in ending]
        if not stops:
            raise UserError(
                f"{probe.where}: the template ends an answer with {ending!r}, which has no special token of the "
                "tokenizer, so generation would not stop. Make the end of a turn a special token, or set `template` to "
                "one that writes eos_token after an answer"
            )
        self.forms[template, tokenizer] = Form(markers, min(stops)[2], lead)
        return self.forms[template, tokenizer]

    def _chat(self, document: Document, form: Form) -> Chat:
        """Convert a document to the turns that the template reads.

        Raises:
            UserError: roles that no template expresses, an answer with a picture, or a marker in a text.
        """
        where, numbers = f"document {document.id!r}", count()
        roles: list[str] = []
        pieces: list[tuple[str | int, ...]] = []
        leading: tuple[str | int, ...] = ()  # pictures in front of the conversation
        forbidden = (*form.markers, OPEN, CLOSE, *filter(None, (self.placeholder, self.image_start, self.image_end)))
        for number, turn in enumerate(document.without_line_ends().turns):
            for marker in forbidden:
                if marker in turn.text:
                    raise UserError(
                        f"{where}, turn {number} ({turn.role}): its text contains the marker {marker!r}, which only "
                        "the template may write; clean the data"
                    )
            self._check_turn(turn, f"{where}, turn {number}", first=not pieces and not leading)
            content = tuple(part if isinstance(part, str) else next(numbers) for part in turn.parts)
            if turn.role == "page":
                leading = content
                continue
            if turn.role == "user":
                content, leading = leading + content, ()
            roles.append(turn.role)
            pieces.append(content)
        if self.system is not None and roles[:1] != ["system"]:
            roles, pieces = ["system", *roles], [(self.system,), *pieces]
        spoken = [role for role in roles if role != "system"]
        if spoken[:1] != ["user"] or roles[-1] == "system":
            raise UserError(
                f"{where}: a chat starts with a question, after the system's text, and ends with a question or an "
                f"answer; got the turns {roles}"
            )
        return Chat(where, tuple(roles), tuple(pieces))

    @staticmethod
    def _check_turn(turn: Turn, where: str, *, first: bool) -> None:
        """Refuse running text, and pictures that are not in a question.

        Raises:
            UserError: the turn has one of these.
        """
        if turn.role == "page":
            if not first or any(isinstance(part, str) for part in turn.parts):
                raise UserError(f"{where} is a page, which a chat template cannot express. Use `Interleaved` for pages")
        elif turn.role != "user" and any(not isinstance(part, str) for part in turn.parts):
            raise UserError(
                f"{where} ({turn.role}) contains a picture, but in a chat template only questions have pictures"
            )

    def _messages(self, chat: Chat) -> list[dict[str, Any]]:
        """Return the messages of a chat in the form of transformers."""
        messages: list[dict[str, Any]] = []
        for role, pieces in zip(chat.roles, chat.pieces, strict=True):
            if self.placeholder:
                kinds = ({"type": "text", "text": x} if isinstance(x, str) else {"type": "image"} for x in pieces)
                messages.append({"role": role, "content": list(kinds)})
                continue
            texts = (x if isinstance(x, str) else self._mark(x) for x in pieces)
            messages.append({"role": role, "content": "".join(texts)})
        return messages

    def _mark(self, picture: int) -> str:
        return f"{self.image_start}{OPEN}{picture}{CLOSE}{self.image_end}"

    def _render(
        self, chat: Chat, template: str, tokenizer: Tokenizer, *, opened: bool = True
    ) -> tuple[str, list[tuple[int, int]] | None]:
        """Render a chat.

        Args:
            chat: chat to render; if the assistant speaks next, its generation prompt is added.
            template: text of the template.
            tokenizer: tokenizer, whose special tokens the template may write.
            opened: False leaves out the generation prompt.
        Returns:
            The text, and the [start, end) characters inside `{% generation %}` markers; None without markers.
        Raises:
            UserError: the template fails, or is refused by the sandbox.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        tokens = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "pad_token": tokenizer.pad}
        # None in place of the function makes a template that writes today's date fail
        settings = {key: token for key, token in tokens.items() if token is not None} | {"strftime_now": None}
        marked = self.markers and GENERATION.search(template) is not None
        try:
            texts, spans = render_jinja_template(
                [self._messages(chat)],
                chat_template=template,
                return_assistant_tokens_mask=marked,
                add_generation_prompt=opened and chat.waits,
                **(settings | self.variables),
            )
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            reason = first_line(error)
            clock = (
                " The template writes today's date, with which tokens would change from day to day: set its date in "
                "`variables`, such as {date_string: 26 Jul 2024}."
            )
            raise UserError(
                f"{chat.where}: the chat template fails on the turns {list(chat.roles)}: {reason}."
                + clock * ("strftime_now" in template and isinstance(error, TypeError))
                + " Change the data, or set `template` to a template that expresses them"
            ) from error
        return texts[0], spans[0] if marked else None

    def _learnt(
        self,
        text: str,
        spans: list[tuple[int, int]] | None,
        chat: Chat,
        form: Form,
        template: str,
        tokenizer: Tokenizer,
    ) -> Iterator[tuple[int, int]]:
        """Yield the [start, end) characters of learnt answers with their ends.

        Args:
            text: rendered chat.
            spans: [start, end) characters inside generation markers; None without markers.
            chat: chat that was rendered.
            form: properties of the template.
            template: text of the template.
            tokenizer: tokenizer of the language model.
        Raises:
            UserError: the template is not incremental, changes an answer, or its markers do not enclose an answer.
        """
        turns = len(chat.roles)
        for number in range(0 if self.answers == "all" else turns - 1, turns):
            if chat.roles[number] != "assistant":
                continue
            opening, _ = self._render(chat.first(number), template, tokenizer)
            opening = opening.rstrip(" ")
            cure = TEMPLATE_CURE if number + 1 == turns else LAST_CURE + TEMPLATE_CURE
            _check_prefix(opening, text, chat.where, f"the generation prompt before turn {number}", cure)
            start, source = len(opening), text
            if spans is None and number + 1 < turns:
                source, _ = self._render(chat.first(number + 1), template, tokenizer)
            stop = source.find(form.stop, start)
            if stop < 0:
                raise UserError(
                    f"{chat.where}, turn {number}: the chat template does not end this answer with {form.stop!r}, so "
                    f"that generation would not stop; it writes {source[start:][-EXCERPT:]!r} at its end"
                )
            stop += len(form.stop)
            _check_prefix(source[:stop], text, chat.where, f"the end of turn {number}", cure)
            if _squeezed(chat.text(number)) not in _squeezed(text[start:stop]):
                raise UserError(
                    f"{chat.where}, turn {number}: the chat template changes the answer "
                    f"{chat.text(number)[:EXCERPT]!r} to {text[start:stop][:EXCERPT]!r}. Change the data, or set "
                    "`template` to another template"
                )
            if spans is not None:
                inside = [(a, b) for a, b in spans if a < stop and b > start]
                if not inside:
                    continue
                if len(inside) > 1 or text[start : inside[0][0]].strip(" ") or inside[0][1] < stop:
                    covered = [text[a:b] for a, b in inside]
                    raise UserError(
                        f"{chat.where}, turn {number}: generation has to produce {text[start:stop]!r}, but the markers "
                        f"of the chat template enclose {covered}. Correct the template, or set `markers: false`"
                    )
            yield start, stop

    def _pieces(self, text: str, number: Iterator[int]) -> Iterator[Part]:
        """Split a text that is not learnt at its pictures.

        Args:
            text: part of a rendered chat.
            number: numbers of the next pictures, for a template that writes a placeholder.
        """
        if self.placeholder:
            first, *others = text.split(self.placeholder)
            yield Text(first)
            for other in others:
                yield from (next(number), Text(other))
            return
        for at, piece in enumerate(PICTURE_MARK.split(text)):
            yield int(piece) if at % 2 else Text(piece)

    def _check_text(self, text: str, chat: Chat) -> None:
        """Refuse a template that loses, changes or moves the text of the system or of a question.

        Raises:
            UserError: a text is missing behind the texts before it. White space does not count.
        """
        squeezed, at = _squeezed(text), 0
        for number, (role, pieces) in enumerate(zip(chat.roles, chat.pieces, strict=True)):
            for piece in pieces if role != "assistant" else ():
                words = piece if isinstance(piece, str) else "" if self.placeholder else self._mark(piece)
                at = squeezed.find(_squeezed(words), at)
                if at < 0:
                    raise UserError(
                        f"{chat.where}, turn {number} ({role}): the chat template drops, changes or moves "
                        f"{piece if isinstance(piece, str) else 'a picture'!r}. Take the turn out of the data "
                        "(or `system` out of the prompt), or set `template` to another template"
                    )
                at += len(_squeezed(words))


def prompt_of(prompt: Literal["template"] | Prompt) -> Prompt:
    """Return the prompt that a recipe names; "template" is a `ChatTemplate` without settings."""
    return ChatTemplate() if prompt == "template" else prompt


def _check_prefix(prefix: str, whole: str, where: str, end: str, cure: str) -> None:
    """Refuse a chat of which the first turns alone are written differently.

    Args:
        prefix, whole: rendered text of the first turns and of the whole chat.
        where: words that name the document.
        end: words that name the end of `prefix`.
        cure: advice for the user.
    Raises:
        UserError: `prefix` is no prefix of `whole`; the message has both texts at the first difference.
    """
    if whole.startswith(prefix):
        return
    pairs = enumerate(zip(prefix, whole, strict=False))
    same = next((at for at, (first, other) in pairs if first != other), min(len(prefix), len(whole)))
    raise UserError(
        f"{where}: the template is not incremental: up to {end} it writes {prefix[same : same + EXCERPT]!r} where "
        f"the whole chat has {whole[same : same + EXCERPT]!r}. {cure}"
    )


def _squeezed(text: str) -> str:
    """Return a text without its white space."""
    return "".join(text.split())
