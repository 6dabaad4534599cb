"""Fuyu: linear patches of any size in one call, text alone, coordinates in prompts and answers, cached decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import tokenizers
import torch

from lit_mm.connectors.pass_through import PassThrough
from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.families import Fuyu
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import answer, decode
from lit_mm.language.pretrained import Pretrained
from lit_mm.prompts.fuyu import FuyuPrompt, to_pixels, to_units
from lit_mm.prompts.prompt import PictureRun, TextRun
from lit_mm.prompts.tokenizer import Tokenizer
from lit_mm.samples.batch import Batch
from lit_mm.samples.collate import collate
from lit_mm.samples.inputs import Inputs
from lit_mm.vision.linear_patches import LinearPatches
from tests.rows import loss_sum, states
from tests.tiny import Noise

CANVAS = (60, 90)
SPECIAL = ("<s>", "</s>", "<0x00>", "<0x01>", "<0x02>", "<0x03>", "<0x04>", "|NEWLINE|")


def words() -> Tokenizer:
    """A tokenizer of words, with a token for each number to 99."""
    known = ("?", *SPECIAL, "look", "here", "there", *map(str, range(100)))
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: n for n, w in enumerate(known)}, unk_token="?"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model.add_special_tokens(list(SPECIAL))
    return Tokenizer(model, bos="<s>", eos="</s>", pad="?")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Fuyu:
    monkeypatch.setattr("lit_mm.families.composition.load_tokenizer", lambda reference: words())
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    language = Pretrained({"model_type": "persimmon", "vocab_size": 128, "rope_theta": 25000.0} | sizes)
    inputs = Inputs(prompt=FuyuPrompt(CANVAS, question="{question}"))
    return Fuyu(LinearPatches(10, 32), language, "words", canvas=CANVAS, inputs=inputs).eval()


def asked(*pictures: Noise, question: str = "look here", reply: str = "there") -> Document:
    return Document("asked", (Turn("user", (*pictures, question)), Turn("assistant", (reply,))))


def batch_of(module: Fuyu, *documents: Document) -> Batch:
    return collate([module.processor.sample(document) for document in documents], module.processor)


def ids_of(runs: Sequence[PictureRun | TextRun]) -> list[str]:
    tokenizer = words()
    ids = [number for run in runs if isinstance(run, TextRun) for number in run.ids]
    return [tokenizer.decode([number], skip_special=False) for number in ids]


def test_views_of_many_sizes_pass_through_the_linear_in_one_call(module: Fuyu) -> None:
    documents = [asked(Noise(0, 20, 30)), asked(Noise(1, 55, 17)), asked(), asked(Noise(2, 400, 300))]
    batch = batch_of(module, *documents)
    assert len(batch.views.groups) == 3 and module.network.together
    calls: list[int] = []
    module.network.vision.projection.register_forward_hook(lambda *of_call: calls.append(len(of_call[2])))
    together = states(module.network, batch)
    assert calls == [2 * 3 + 6 * 2 + 6 * 5]
    alone = torch.cat([states(module.network, batch_of(module, document)) for document in documents])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_a_batch_without_pictures_gives_the_linear_a_gradient_of_zero(module: Fuyu) -> None:
    loss_sum(module, batch_of(module, asked(), asked())).backward()
    gradient = module.network.vision.projection.weight.grad
    assert gradient is not None and not gradient.any()
    loss_sum(module, batch_of(module, asked(Noise(0)))).backward()
    assert module.network.vision.projection.weight.grad.any()


def test_two_pictures_stand_in_front_of_bos_in_order(module: Fuyu) -> None:
    sample = module.processor.sample(asked(Noise(0, 10, 20), Noise(1, 20, 10)))
    newline, bos = module.processor.tokenizer.id_of("|NEWLINE|"), module.processor.tokenizer.bos_id
    index, ids = sample.index.tolist(), sample.input_ids.tolist()
    assert [at for at in index if at >= 0] == [0, 1, 2, 3]
    assert ids[2] == ids[4] == ids[6] == newline and ids[7] == bos
    learnt = [int(number) for number in sample.labels if number >= 0]
    assert words().decode(learnt, skip_special=False).split() == ["there", "</s>"]


def test_cached_decoding_equals_uncached_and_beams_run(module: Fuyu) -> None:
    documents = [
        asked(Noise(0, 20, 30)).without_answer(),
        asked().without_answer(),
        asked(Noise(1, 50, 25)).without_answer(),
    ]
    network = module.network
    with torch.no_grad():
        cached = decode(network, batch_of(module, *documents), stop_ids=(), decoding=Decoding(6))
        for document, expected in zip(documents, cached, strict=True):
            ids: list[int] = []
            for _ in range(6):
                batch = batch_of(module, document)
                longer = torch.cat([batch.ids, torch.tensor([ids], dtype=torch.long)], dim=1)
                places = torch.arange(longer.shape[1])[None]
                batch = replace(batch, ids=longer, lengths=(longer.shape[1],), positions=places)
                ids.append(int(network.language.logits(states(network, batch)[-1]).argmax()))
            assert ids == expected, document
        beams = decode(network, batch_of(module, *documents), stop_ids=(2,), decoding=Decoding(4, beams=2))
    assert [len(row) > 0 for row in beams] == [True] * 3
    assert len(answer(module, [asked(Noise(0)), asked()], max_new_tokens=3)) == 2


# pixel of the picture, factor, unit, pixel read back
@pytest.mark.parametrize(
    ("pixel", "factor", "unit", "back"), [(10, 1.0, 5, 10), (3, 1.0, 2, 4), (100, 0.25, 12, 96), (7, 0.5, 2, 8)]
)
def test_a_coordinate_is_halved_and_scaled_and_comes_back(pixel: int, factor: float, unit: int, back: int) -> None:
    assert to_units(pixel, factor) == unit
    assert to_pixels(unit, factor) == back


def test_boxes_and_points_become_one_token_a_number() -> None:
    document = asked(Noise(0, 120, 90), question="look <box>20, 8, 40, 16</box> here <point>8, 4</point>")
    tokens = ids_of(FuyuPrompt(CANVAS, question="{question}").runs(document.without_answer(), words()))
    box, point = ["<0x00>", "5", "2", "10", "4", "<0x01>"], ["<0x02>", "2", "1", "<0x03>"]
    assert tokens == ["<s>", "look", *box, "here", *point, "<0x04>"]  # 120 pixels shrink to 60


def test_boxes_in_answers_come_back_in_pixels_of_the_picture() -> None:
    prompt, tokenizer = FuyuPrompt(CANVAS), words()
    document = asked(Noise(0, 120, 90), reply="there <box>20, 8, 40, 16</box> here <point>8, 4</point>")
    *_, text = prompt.runs(document, tokenizer)
    learnt = [number for number, learns in zip(text.ids, text.learn, strict=True) if learns][:-1]
    written = prompt.answer_text(learnt, document, tokenizer)
    assert written.replace(" ", "") == "there<box>20,8,40,16</box>here<point>8,4</point>"
    cut = [tokenizer.id_of(token) for token in ("there", "<0x00>", "5", "2")]
    assert prompt.answer_text(cut, document, tokenizer) == tokenizer.decode(cut)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (asked(Noise(0), question="<box>1, 2, 3</box>"), r"expected <box>y1, x1, y2, x2</box>"),
        (asked(Noise(0), question="<point>a, b</point>"), r"expected <point>x, y</point>"),
        (asked(Noise(0), Noise(1), question="<point>1, 2</point>"), "the document has 2"),
        (asked(Noise(0), question="look <0x04>"), "contains the marker"),
        (Document("d", (Turn("system", ("look",)), Turn("user", ("here",)))), "alternating questions and answers"),
        (Document("d", (Turn("user", ("look",)), Turn("assistant", (Noise(0),)))), "contains a picture"),
        (Document("d", (*asked().turns, Turn("user", (Noise(0), "look")))), "only before the first question"),
    ],
)
def test_what_the_template_cannot_express_is_refused(document: Document, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FuyuPrompt(CANVAS).runs(document, words())


def test_a_page_and_several_rounds_are_learnt_answer_by_answer() -> None:
    page = Document("page", (Turn("page", (Noise(0), "look here")),))
    rounds = Document("rounds", (*asked(Noise(0)).turns, Turn("user", ("here",)), Turn("assistant", ("look",))))
    prompt = FuyuPrompt(CANVAS, question="{question}")
    for document, expected in ((page, "look here </s>"), (rounds, "there </s> look </s>")):
        *_, text = prompt.runs(document, words())
        learnt = [number for number, learns in zip(text.ids, text.learn, strict=True) if learns]
        assert words().decode(learnt, skip_special=False).split() == expected.split()


def test_features_of_another_width_than_the_language_model_are_refused() -> None:
    with pytest.raises(UserError, match="Set `width` of the vision encoder to 48"):
        PassThrough(32, 48)
