"""Mixtures as data modules: options of the sources, valid and invalid."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from jsonargparse import ArgumentParser

from lit_mm.datamodules.mixture import Member, Mixture
from lit_mm.errors import UserError
from lit_mm.objectives.next_token import NextToken
from lit_mm.stages.stage import Stage, Train
from lit_mm.stream.order import MicroBatch
from tests.faulty import write
from tests.rows import loss_sum
from tests.tiny import document, xcomposer2

STAGE = Stage("a", {"language": Train(lr=1.0)}, max_steps=6)


def member(size: int, name: str = "a", **options: Any) -> Member:
    return Member([document(number) for number in range(size)], name, **options)


def test_a_broken_held_out_document_is_left_out_as_the_policy_says(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    entries = [{"id": "0", "conversations": turns}, {"id": "1", "image": "absent.png", "conversations": turns}]
    (tmp_path / "heldout.json").write_text(json.dumps(entries))
    heldout = {"format": "llava", "path": str(tmp_path / "heldout.json")}
    data = Mixture([member(3)], heldout_source=heldout, on_bad_sample="quarantine")
    assert [document.id for document in data.heldout()] == ["0"]
    with pytest.raises(UserError, match=r"heldout\.json:1 \(entry 2\)"):
        Mixture([member(3)], heldout_source=heldout).heldout(1)


@pytest.mark.parametrize(
    ("weights", "options", "draws"),
    [
        ("size", [{}, {}], [36, 4]),
        ("sqrt", [{}, {}], [30, 10]),
        ("sqrt", [{"weight": 0.5}, {"weight": 1.5}], [20, 20]),
        ("explicit", [{"weight": 1.0}, {"weight": 3.0}], [10, 30]),
        ("repeat", [{"repeat": 0.5}, {"repeat": 3}], [18, 12]),
        ("repeat", [{}, {"draws": 25}], [36, 25]),
    ],
)
def test_weights_decide_how_often_a_source_is_drawn(weights: str, options: list[dict], draws: list[int]) -> None:
    members = [member(size, name, **own) for size, name, own in zip((36, 4), "ab", options, strict=True)]
    mixture = Mixture(members, weights, num_workers=0)
    assert mixture.joined.draws == draws
    mixture.begin(xcomposer2().processor, STAGE, seed=0)
    plan = mixture.stream.plan
    drawn = Counter(mixture.joined.source_of(n) for row in plan.rows(0, plan.rows_of(1)) for n in row)
    assert [drawn[0], drawn[1]] == draws


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ("explicit", {}, r"`weights: explicit` needs a `weight`, got none"),
        (
            "size",
            {"weight": 2.0},
            r"`weights: size` needs neither `weight` .*got `weight`.*`weights: explicit` reads",
        ),
        ("sqrt", {"repeat": 2}, r"`weights: sqrt` needs at most a `weight`, got `repeat`"),
        ("repeat", {"repeat": 2, "draws": 5}, r"needs `repeat` or `draws`, got `repeat` and `draws`"),
        ("repeat", {"repeat": float("inf")}, "`repeat` of source .* is a positive number, got inf"),
        ("sqrt", {"weight": 0.0}, r"weights of a mixture are positive numbers, got .* 0\.0}\. To leave a source out"),
        ("repeat", {"repeat": 0.01}, "of 5 samples is never drawn"),
    ],
)
def test_a_key_that_would_do_nothing_or_is_missing_is_refused(weights: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Mixture([member(5, **options)], weights)


def test_an_empty_mixture_and_an_empty_source_are_refused() -> None:
    with pytest.raises(UserError, match="has no sources"):
        Mixture([])
    with pytest.raises(UserError, match="source 'b' of the mixture has no samples"):
        Mixture([member(1), member(0, "b")])


def test_a_recipe_declares_sources_by_format_or_by_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_MM_CACHE", str(tmp_path / "cache"))
    write(tmp_path, count=8, each=0)
    chat, words = str(tmp_path / "chat.jsonl"), str(tmp_path / "words.jsonl")
    declared = {"class_path": "lit_mm.documents.sources.LlavaConversations", "init_args": {"path": chat}}
    options = {
        "sources": [{"source": declared}, {"source": {"format": "llava", "path": words}, "name": "text alone"}],
        "heldout_source": {"format": "llava", "path": words},
    }
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.LightningDataModule, "data")
    given = {"data": {"class_path": "lit_mm.datamodules.mixture.Mixture", "init_args": options}}
    mixture = parser.instantiate_classes(parser.parse_object(json.loads(json.dumps(given)))).data
    assert mixture.joined.names == ["chat", "text alone"]
    assert mixture.joined.sizes == [8, 4]
    assert [d.id for d in mixture.heldout(2)] == ["words/0", "words/1"]


def test_a_batch_knows_the_source_of_every_position_and_sample() -> None:
    mixture = Mixture([member(3), Member([document(90), document(91)], "b")], row_tokens=192, num_workers=0)
    mixture.begin(xcomposer2().processor, STAGE, seed=0)
    batch = mixture.rows[MicroBatch(((0, 4), (3,), (1, 2)), 7)]
    assert batch.num_by_source == (3, 2)
    assert batch.sample_ids == ("tiny/0", "tiny/91", "tiny/90", "tiny/1", "tiny/2")
    lengths = [mixture.screen(number).supervised for number in (0, 4, 3, 1, 2)]
    sources = [source for source, length in zip((0, 1, 1, 0, 0), lengths, strict=True) for _ in range(length)]
    assert batch.sources.tolist() == sources


def test_the_loss_of_each_source_is_that_of_its_samples_alone() -> None:
    module = xcomposer2(trained=True)
    mixture = Mixture([member(3), Member([document(90), document(91)], "b")], row_tokens=192, num_workers=0)
    mixture.begin(module.processor, STAGE, seed=0)
    objective = NextToken()
    whole = objective(module.network, mixture.rows[MicroBatch(((0, 4), (3,), (1, 2)), 7)])
    losses, tokens = objective.loss_by_source
    for source, rows in ((0, ((0,), (1, 2))), (1, ((4,), (3,)))):
        batch = mixture.rows[MicroBatch(rows, 7)]
        assert float(losses[source]) == pytest.approx(float(loss_sum(module, batch)), rel=1e-5)
        assert int(tokens[source]) == batch.num_supervised
    assert float(losses.sum()) == pytest.approx(float(whole), rel=1e-6)
