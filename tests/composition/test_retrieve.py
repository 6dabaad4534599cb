"""Retrievers rank images by likelihood under the model and by words of file names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from lit_mm.composition.compose import Question
from lit_mm.composition.retrieve import ByFileName, ByLikelihood
from lit_mm.composition.writer import Writer
from lit_mm.documents.document import Document, Turn
from lit_mm.documents.files import FilePicture
from lit_mm.errors import UserError
from lit_mm.families import XComposer2
from lit_mm.inference.decoding import Decoding
from lit_mm.samples.collate import collate
from tests.rows import loss_sum
from tests.tiny import Noise, xcomposer2

POOL = [Noise(number) for number in range(5)]


@pytest.fixture(scope="module")
def module() -> XComposer2:
    model = xcomposer2(trained=True, max_length=200).eval()
    for parameter in model.network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_images_are_ranked_by_the_likelihood_of_the_caption(module: XComposer2) -> None:
    def likelihood(number: int) -> float:
        page = Document("p", (Turn("page", (POOL[number], "a red circle")),))
        with torch.no_grad():
            return -loss_sum(module, collate([module.processor.sample(page)], module.processor)).item()

    expected = sorted(range(5), key=likelihood, reverse=True)
    for batch_size in (1, 2, 16):
        retrieve = ByLikelihood(batch_size).over(module, POOL)
        assert retrieve("a red circle", 5, ()) == expected
        assert retrieve("a red circle", 2, ()) == expected[:2]
        assert retrieve("a red circle", 9, {expected[0], expected[3]}) == [expected[n] for n in (1, 2, 4)]
        assert retrieve("a red circle", 4, set(range(5))) == []


def test_a_batch_of_no_images_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size"):
        ByLikelihood(0)


def test_files_are_ranked_by_the_words_of_their_names(module: XComposer2, tmp_path: Path) -> None:
    for name in ("blue_whale", "cat", "Whale-in-the-sea", "dog"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    pictures = [FilePicture.open(path) for path in sorted(tmp_path.iterdir())]
    names = [picture.path.stem for picture in pictures]
    retrieve = ByFileName().over(module, pictures)
    found = [names[n] for n in retrieve("A whale, in the SEA!", 4, ())]
    assert found == ["Whale-in-the-sea", "blue_whale", "cat", "dog"]  # of equals, the first in the folder
    assert retrieve("a whale", 2, {names.index("blue_whale")})[0] == names.index("Whale-in-the-sea")
    with pytest.raises(UserError, match="image 0 has no file"):
        ByFileName().over(module, POOL)


def test_the_writer_answers_from_where_its_answer_was_begun_and_draws_anew(module: XComposer2) -> None:
    document = Document("q", (Turn("user", (POOL[0], "what?")), Turn("assistant", ("the red",))))
    question = Question("spot", document, Decoding(12, sample=True, temperature=3.0))
    said = [Writer(module, 4096, seed=1)(question) for _ in range(2)]
    assert said[0] == said[1]
    writer = Writer(module, 4096, seed=1)
    assert writer(question) != writer(question)  # the same question later: other draws
    assert Writer(module, 4096, seed=2)(question) != said[0]


def test_the_writer_says_what_fits(module: XComposer2) -> None:
    def document(words: int) -> Document:
        return Document("q", (Turn("user", ("red " * words,)),))

    long, short = document(250), document(5)
    assert Writer(module, 4096).context == 200  # the model's own
    assert Writer(module, 4096).fits(short) and not Writer(module, 4096).fits(long)
    assert not Writer(module, 10).fits(short)


def test_markers_that_the_model_spells_out_are_left_out(module: XComposer2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_mm.composition.writer.answer", lambda *_, **__: ["a<|im_end|> b</s>c"])
    assert Writer(module, 100)(Question("spot", Document("q", ()), Decoding())) == "a bc"
