"""Examinations on held-out documents are stored as they come, and equal those of the examiners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lit_mm.documents.document import Document, Turn
from lit_mm.evaluation import held_out
from lit_mm.evaluation.examiners import examine, measure_of
from lit_mm.evaluation.held_out import digest_of_examination, examine_stored, image_names
from lit_mm.module import MultimodalModule
from tests.tiny import Noise, document, xcomposer2
from tests.tiny_blip import blip, page


def generating() -> MultimodalModule:
    """A model with large random weights, whose answers depend on the question."""
    model = xcomposer2(trained=True).eval()
    for name, parameter in model.network.language.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.0 if "embed_tokens" in name else 0.4)
    return model


FAMILIES: dict[str, tuple[Callable[[], MultimodalModule], list[Document], str]] = {
    "generation": (generating, [document(n, pictures=n % 2, skill="ab"[n % 2]) for n in range(7)], "exact match"),
    "an examiner of the family": (lambda: blip().eval(), [page(n) for n in range(5)], "recall@1"),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("blind", [False, True])
def test_a_killed_examination_goes_on_and_is_that_of_the_examiner(
    name: str, blind: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, documents, measure = FAMILIES[name]
    module = build()
    assert measure_of(module) == measure
    expected = examine(module, documents, blind=blind, batch_size=2)
    assert examine_stored(module, documents, None, blind=blind, batch_size=2) == expected
    if module.examiner is None:
        calls: list[object] = []
        work = held_out.generated

        def killed(*arguments):
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(arguments)
            return work(*arguments)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(held_out, "generated", killed)
            examine_stored(module, documents, tmp_path, blind=blind, batch_size=2)
        assert len((tmp_path / "answers-0.jsonl").read_text().splitlines()) == 4
    result = examine_stored(module, documents, tmp_path, blind=blind, batch_size=2)
    assert result == expected
    monkeypatch.setattr(held_out, "generated", lambda *_: pytest.fail("stored answers were computed again"))
    if module.examiner is not None:
        monkeypatch.setattr(module, "examiner", lambda *_, **__: pytest.fail("the examiner was asked again"))
    assert examine_stored(module, documents, tmp_path, blind=blind, batch_size=2) == result


def test_documents_with_the_same_images_have_the_same_image_name() -> None:
    documents = [page(0), replace(page(1), id="other"), Document("again", page(0).turns), document(0, pictures=0)]
    names = image_names([*documents, Document("text", (Turn("user", ("why?",)),))])
    assert names[0] == names[2]
    assert len(set(names)) == 4


def test_the_folder_of_an_examination_changes_with_all_that_determines_it() -> None:
    module = generating()
    documents = FAMILIES["generation"][1]

    def digest(documents=documents, **changes) -> str:
        return digest_of_examination(module, documents, image_names(documents), **{"weights": "w"} | changes)

    other_answer = [replace(documents[0], turns=(*documents[0].turns[:-1], Turn("assistant", ("x",)))), *documents[1:]]
    other_image = [*documents[:1], replace(documents[1], turns=(Turn("user", (Noise(77), "?")),)), *documents[2:]]
    digests = [digest(), digest(weights="v"), digest(blind=True), digest(batch_size=3)]
    digests += [digest(other_answer), digest(other_image), digest(documents[:-1])]
    assert len(set(digests)) == len(digests) and digest() == digests[0]
