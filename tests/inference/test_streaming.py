"""Answers that come piece by piece, and chats in which an image is encoded once."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace

import pytest
import torch

from lit_mm.documents.document import Document, Turn
from lit_mm.families import EncoderDecoder
from lit_mm.inference.chat import Chat, takes_several_turns
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.features import FeatureCache
from lit_mm.inference.generate import answer
from lit_mm.inference.streaming import StreamedText, begun, cut, stream
from lit_mm.language.t5 import T5
from lit_mm.layers.two_maps import TwoMaps
from lit_mm.prompts.caption import Caption
from lit_mm.prompts.fuyu import FuyuPrompt
from lit_mm.prompts.prompt import ReadsAnswers
from lit_mm.prompts.template import ChatTemplate
from tests.tiny import Noise, decoder, document, sharp_xcomposer2
from tests.tiny_blip import blip


@pytest.fixture(scope="module")
def module():
    """A model with large random weights, whose answers depend on the text and on the images."""
    return sharp_xcomposer2().train()


@pytest.fixture
def calls(module):
    """Numbers of views that the vision encoder reads, call by call."""
    numbers = []
    handle = module.network.vision.patches.register_forward_hook(
        lambda _module, inputs, _output: numbers.append(len(inputs[0]))
    )
    yield numbers
    handle.remove()


def t5():
    torch.manual_seed(0)
    return EncoderDecoder(T5(width=16, layers=1, heads=2, ffn_width=32, vocab_size=512), "nano")


@pytest.mark.parametrize("decoding", [Decoding(8), Decoding(8, sample=True, seed=3), Decoding(8, beams=2)])
def test_the_pieces_of_an_answer_joined_are_the_answer(module, decoding):
    for number in range(3):
        pieces = list(stream(module, document(number), decoding=decoding))
        assert "".join(pieces) == answer(module, [document(number)], decoding=decoding)[0]
        assert decoding.sample or (len(pieces) == 1 if decoding.beams > 1 else len(pieces) > 2)
    assert module.training and torch.is_grad_enabled()


def test_an_encoder_decoder_streams_its_answer():
    model = t5()
    text = document(0, pictures=0)
    assert "".join(stream(model, text, decoding=Decoding(6))) == answer(model, [text], max_new_tokens=6)[0]


def test_a_closed_stream_gives_the_model_back(module):
    pieces = stream(module, document(1), decoding=Decoding(8))
    next(pieces)
    assert not module.training
    pieces.close()
    assert module.training and torch.is_grad_enabled() and "forward" not in vars(module.network.vision)


@dataclass(frozen=True)
class Spelling:
    """A vocabulary of whole texts, which drops the blank before a comma, as WordPiece does."""

    texts: tuple[str, ...] = ("a", " cat", " ,", " dog", "#", "##", "\ufffd", "e", "</s>")

    def decode(self, ids, skip_special=True):
        text = "".join(self.texts[number] for number in ids if number != 8)
        return text.replace("\ufffd\ufffd", "é").replace(" ,", ",")


@dataclass(frozen=True)
class Ends:
    """Answers end with </s>, or with # and ##."""

    def stop_ids(self, tokenizer):
        return frozenset({8})

    def stop_sequences(self, tokenizer):
        return ((4, 5, 4),)


@dataclass(frozen=True)
class Reader:
    """The part of a processor that turns ids into text."""

    tokenizer: Spelling = Spelling()
    prompt: object = Ends()

    def answer_text(self, ids, document):
        if isinstance(self.prompt, ReadsAnswers):
            return self.prompt.answer_text(ids, document, self.tokenizer)
        return self.tokenizer.decode(ids).strip()


@pytest.mark.parametrize(
    ("ids", "until", "pieces"),
    [
        ((0, 1, 3, 8), (), ["", "a", " cat", " dog"]),
        ((0, 1, 2, 3), (), ["", "a", " cat", ",", " dog"]),  # " ," takes its blank back
        ((0, 6, 6, 1), (), ["", "a", "", "é", " cat"]),  # a character of two tokens
        ((0, 6, 6), (), ["", "a", "", "é"]),
        ((0, 4, 5, 4), (), ["", "a", "", ""]),  # the end of three tokens is withheld
        ((0, 4, 5, 3), (), ["", "a", "", "", "### dog"]),  # no end after all
        ((0, 1, 3, 7), ("cat d",), ["", "a", " "]),
        ((0, 1, 3), ("dogs",), ["", "a", " cat", " dog"]),
    ],
)
def test_text_is_sent_once_no_later_token_can_change_it(ids, until, pieces):
    text = StreamedText(Reader(), Document("d", ()), until)
    sent = []
    for number in ids:
        sent.append(text.add(number))
        if text.ended:
            break
    else:
        sent.append(text.finish())
    assert "".join(sent) == "".join(pieces)
    assert [piece for piece in sent if piece] == [piece for piece in pieces if piece]


@pytest.mark.parametrize(
    ("text", "ends", "length"),
    [("a cat##", ("###",), 2), ("a cat", ("###",), 0), ("a#", ("##", "#a#b"), 1), ("ab", ("ab",), 0), ("", ("x",), 0)],
)
def test_the_beginning_of_an_end_is_found_at_the_end_of_a_text(text, ends, length):
    assert begun(text, ends) == length


def test_a_text_is_cut_at_the_first_of_its_ends():
    assert cut("one\n\ntwo. three", (".", "\n\n")) == ("one", True)
    assert cut("one", (".",)) == ("one", False)


def test_reasoning_and_incomplete_boxes_are_not_settled():
    tokenizer = decoder().processor.tokenizer
    lead = tokenizer.encode(" near")  # stands for the end of a reasoning
    template = ChatTemplate(
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>near {{ m.content }}<|im_end|>"
        "{% else %}<|im_start|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    red = tokenizer.encode(" red")
    assert template.settled(red, tokenizer) == 0
    assert template.settled([*red, *lead, *red], tokenizer) == len([*red, *lead, *red])
    fuyu = FuyuPrompt(box=("<|im_start|>", "<|im_end|>"), point=("<s>", "</s>"))
    start = tokenizer.id_of("<|im_start|>")
    assert [fuyu.settled(ids, tokenizer) for ids in ([5, start, 6, 7], [5, start, 6, 7, 8, 9], [5, 6])] == [1, 1, 2]
    assert fuyu.settled([5, start, 6, 7, 8, 9, tokenizer.id_of("<|im_end|>")], tokenizer) == 7


# --- chats -----------------------------------------------------------------------------------------------------------
def test_a_chat_remembers_its_turns_and_encodes_each_image_once(module, calls):
    conversation = Chat(module, Decoding(4))
    conversation.show(Noise(1))
    answers = ["".join(conversation.ask("what is this"))]
    assert calls == [1]
    answers.append("".join(conversation.ask("what colour")))
    assert calls == [1]
    conversation.show(Noise(2))
    answers.append("".join(conversation.ask("the red circle ?")))
    assert calls == [1, 1]
    turns = (Turn("user", (Noise(1), "what is this")),)
    for question, text in zip(("what colour", (Noise(2), "the red circle ?")), answers, strict=False):
        assert answer(module, [Document("d", turns)], max_new_tokens=4) == [text]
        parts = (question,) if isinstance(question, str) else question
        turns += (Turn("assistant", (text,)), Turn("user", parts))
    assert answer(module, [Document("d", turns)], max_new_tokens=4) == [answers[2]]
    assert conversation.turns == (*turns, Turn("assistant", (answers[2],)))
    conversation.start_over()
    assert conversation.turns == () and conversation.prompt() is None


def test_an_answer_that_is_ended_early_is_remembered_as_far_as_it_goes(module):
    conversation = Chat(module, Decoding(30))
    with closing(conversation.ask("what is this")) as pieces:
        first = next(pieces)
    assert conversation.turns == (Turn("user", ("what is this",)), Turn("assistant", (first,)))
    assert len(conversation.prompt()) == len(module.processor.sample(Document("d", conversation.turns[:1])))


def test_a_prompt_of_one_turn_is_asked_each_question_alone(module, monkeypatch):
    assert takes_several_turns(module.processor)
    monkeypatch.setitem(vars(module), "processor", replace(module.processor, prompt=Caption(5)))
    assert not takes_several_turns(module.processor)
    conversation = Chat(module, Decoding(3))
    conversation.show(Noise(1))
    first, second = "".join(conversation.ask("what")), "".join(conversation.ask("why"))
    assert first == second and conversation.pictures == (Noise(1),)
    assert conversation.turns == (Turn("user", (Noise(1), "why")), Turn("assistant", (second,)))


def test_a_captioner_without_visual_tokens_streams_and_takes_one_turn():
    model = blip().eval()
    conversation = Chat(model, Decoding(5))
    conversation.show(Noise(1))
    assert not conversation.several
    assert ["".join(conversation.ask("what"))] == answer(model, [Document("d", conversation.turns)], max_new_tokens=5)


def test_features_of_views_of_several_shapes_are_stored_without_their_padding():
    reads = []

    def encode(groups, tiles):
        reads.append([tuple(group.shape[:1] + group.shape[2:]) for group in groups])
        rows = [view.flatten()[: view.shape[1] * view.shape[2]] for group in groups for view in group]
        longest = max(map(len, rows))
        padded = [torch.nn.functional.pad(row, (0, longest - len(row)), value=9.0) for row in rows]
        return torch.stack(padded)[..., None] + tiles[:, None, None]

    small, large = torch.rand(2, 3, 2, 2), torch.rand(1, 3, 2, 4)
    tiles = torch.tensor([0, 1, 0])
    cache = FeatureCache()
    first = cache.encode("vision", encode, lambda size: size, (small, large), tiles)
    again = cache.encode("vision", encode, lambda size: size, (small, large), tiles)
    expected = encode((small, large), tiles)
    assert reads == [[(2, 2, 2), (1, 2, 4)]] * 2
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    torch.testing.assert_close(first[2], expected[2], rtol=0, atol=0)
    torch.testing.assert_close(first[:2, :4], expected[:2, :4], rtol=0, atol=0)
    cache.encode("vision", encode, lambda size: size, (small, torch.rand(1, 3, 2, 4)), tiles)
    assert reads[-1] == [(1, 2, 4)]
    cache.encode("vision", encode, lambda size: size, (small, large), torch.tensor([0, 2, 0]))
    assert reads[-1] == [(1, 2, 2)]  # the same pixels as another tile


def test_features_at_two_resolutions_are_stored_and_the_oldest_go_first():
    reads = []

    def encode(views):
        reads.append(len(views))
        return TwoMaps(views[:, :1], views[:, 1:])

    cache = FeatureCache(limit=2)
    views = torch.rand(3, 3, 2, 2)
    low, high = cache.encode("vision", encode, lambda size: size, views)
    torch.testing.assert_close((low, high), (views[:, :1], views[:, 1:]), rtol=0, atol=0)
    cache.encode("vision", encode, lambda size: size, views[1:])
    assert reads == [3]
    cache.encode("vision", encode, lambda size: size, views[:1])
    assert reads == [3, 1]
