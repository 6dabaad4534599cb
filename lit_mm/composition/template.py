# ruff: noqa: RUF001 (the prompts are Chinese, and so is their punctuation)
"""The prompts of each step of a composition, as data: the released prompts of XComposer and XComposer2."""

from __future__ import annotations

from dataclasses import dataclass

from lit_mm.inference.decoding import Decoding


@dataclass(frozen=True, slots=True)
class Template:
    """The questions of a composition, with the opening and the decoding of each answer.

    A question is the text of one user turn; `str.format` fills its braces. Pairs are (question, opening), where the
    opening is the given start of the assistant's answer ("" for none).

    Attributes:
        article: question for the article, with {instruction}.
        spot: question for places, with {article}, whose lines are numbered by `<Seg i>`, and {count}, the number of
            images ("" lets the model decide); and the opening.
        caption: question for a caption, with {article}, {before} and {slot}; and the opening, which opens a quotation.
        first_caption, next_caption: sentences of {before} about the first and each further earlier caption, with
            {slot} and {caption}.
        between, after: separator of these sentences, and text after the last one.
        select: start of the question for an image. The text so far follows, with its images.
        candidates: text between the text so far and the candidates.
        candidate: text before the image of one candidate, with {letter}.
        candidates_end: end of the question for an image; and the opening.
        decode_article, decode_spot, decode_caption, decode_select: decoding options of each step.
        context: longest prompt, tokens.
    """

    article: str
    spot: tuple[str, str]
    caption: tuple[str, str]
    first_caption: str
    next_caption: str
    between: str
    after: str
    select: str
    candidates: str
    candidate: str
    candidates_end: tuple[str, str]
    decode_article: Decoding
    decode_spot: Decoding
    decode_caption: Decoding
    decode_select: Decoding
    context: int


SPOT = '给定文章"{article}" 根据上述文章，选择适合插入图像的{count}行'
SPOT_OPENING = "适合插入图像的行是"
CAPTION = '给定文章"{article}" {before}给出适合在<Seg{slot}>后插入的图像对应的标题。'
FIRST_CAPTION = '现在<Seg{slot}>后插入图像对应的标题是"{caption}"'
NEXT_CAPTION = '<Seg{slot}>后插入图像对应的标题是"{caption}"'
SELECT = "根据给定上下文和候选图像，选择合适的配图："
SELECT_OPENING = "最合适的图是"

# Source: InternLM-XComposer-1.0/examples/web_demo.py. Spaces and newlines around the questions are part of the prompts.
XCOMPOSER = Template(
    article="根据给定标题写一个图文并茂，不重复的文章：{instruction}",
    spot=(f"{SPOT} ", SPOT_OPENING),
    caption=(f" {CAPTION} ", ' 标题是"'),
    first_caption=FIRST_CAPTION,
    next_caption=NEXT_CAPTION,
    between="， ",
    after="。",
    select=SELECT,
    candidates="\n\n候选图像包括: ",
    candidate="{letter}.",
    candidates_end=("\n", SELECT_OPENING),
    decode_article=Decoding(1000, min_new_tokens=1, beams=5, repetition_penalty=5.0),
    decode_spot=Decoding(300, beams=5),
    decode_caption=Decoding(100, repetition_penalty=5.0),
    decode_select=Decoding(10, beams=5),
    context=1680,
)

SAMPLED = {"sample": True, "temperature": 1.0, "top_p": 0.8, "top_k": 40, "repetition_penalty": 1.005}

# Source: InternLM-XComposer-2.0/examples/gradio_demo_composition.py.
XCOMPOSER2 = Template(
    article="{instruction}",
    spot=(SPOT, SPOT_OPENING),
    caption=(CAPTION, '标题是"'),
    first_caption=FIRST_CAPTION,
    next_caption=NEXT_CAPTION,
    between="， ",
    after="。",
    select=SELECT,
    candidates="候选图像包括: ",
    candidate="{letter}.",
    candidates_end=("", SELECT_OPENING),
    decode_article=Decoding(4096, min_new_tokens=1, **SAMPLED),
    decode_spot=Decoding(200, **SAMPLED),
    decode_caption=Decoding(200, **SAMPLED),
    decode_select=Decoding(10, **SAMPLED),
    context=4096,
)

TEMPLATES = {"xcomposer": XCOMPOSER, "xcomposer2": XCOMPOSER2}
