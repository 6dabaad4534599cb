"""The length index equals laying out, its name depends on all inputs, and its content is checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lit_mm.datamodules.mixture import Member, Mixture
from lit_mm.documents.sources import LlavaConversations
from lit_mm.errors import UserError
from lit_mm.prompts.plain import Plain
from lit_mm.samples.processor import Processor
from lit_mm.stages.stage import Stage, Train
from lit_mm.stream import datamodule as stream
from lit_mm.stream import lengths
from lit_mm.stream.maker import SampleMaker
from lit_mm.stream.mixture import Joined
from lit_mm.stream.screen import Screen
from lit_mm.tiling.anyres import plan_anyres
from tests.faulty import FaultyMixture, write
from tests.tiny import Documents, document, xcomposer2


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FaultyMixture:
    """Two sources with bad and over-long samples, and a separate cache."""
    monkeypatch.setenv("LIT_MM_CACHE", str(tmp_path / "cache"))
    write(tmp_path, count=40, each=1)
    return FaultyMixture(str(tmp_path))


@pytest.fixture
def processor() -> Processor:
    return xcomposer2().processor


def screen(maker: SampleMaker, kept: Any = ()) -> Screen:
    made = Screen(maker, on_bad_sample="skip", max_bad=1.0, max_unsupervised=1.0, tables=kept)
    for number in range(len(maker.documents)):
        made(number)
    return made


def test_what_the_index_says_is_what_laying_out_says(data, processor, monkeypatch):
    maker = data.maker(processor)
    assert lengths.load(maker) == [None, None]
    expected = screen(maker)
    told: list[int] = []
    unknown = [lengths.build(maker, source, told.append) for source in (0, 1)]
    assert unknown == [sum(fault.number < 40 for fault in expected.faults.values()), 0]
    assert told[39] == 40 and told[-1] == 20
    laid_out: list[int] = []
    original = SampleMaker.make
    monkeypatch.setattr(SampleMaker, "make", lambda self, d: laid_out.append(1) or original(self, d))
    again = screen(maker, lengths.load(maker))
    numbers = range(60)
    assert [again(n) for n in numbers] == [expected(n) for n in numbers]
    assert [again.was_cut(n) for n in numbers] == [expected.was_cut(n) for n in numbers]
    assert sum(again.was_cut(n) for n in numbers) == 3
    assert again.faults == expected.faults
    assert again.examined == expected.examined == 60
    assert len(laid_out) <= len(expected.faults)  # only what is bad is looked at


def test_a_stage_of_epochs_lays_out_only_what_is_bad(data, processor, tmp_path, monkeypatch):
    stage = Stage("one", {"connector": Train(1e-3)}, epochs=2)
    steps = data.begin(processor, stage, seed=0)
    rows, bad = data.stream.plan.rows(0, 12), len(data.screen.faults)
    for source in (0, 1):
        lengths.build(data.maker(processor), source)
    laid_out: list[str] = []
    original = SampleMaker.make
    monkeypatch.setattr(SampleMaker, "make", lambda self, d: laid_out.append(d.id) or original(self, d))
    again = FaultyMixture(str(tmp_path))
    assert again.begin(processor, stage, seed=0) == steps
    assert again.stream.plan.rows(0, 12) == rows
    assert len(again.screen.faults) == bad
    assert 0 < len(laid_out) <= bad


def test_a_stage_of_epochs_without_an_index_says_that_it_lays_out_all_samples(
    data, processor, tmp_path, monkeypatch, capsys
):
    shown: list[tuple[str, int]] = []
    done: list[int] = []

    @contextmanager
    def noted(described: str, total: int) -> Iterator[Callable[[int], None]]:
        shown.append((described, total))
        yield done.append

    monkeypatch.setattr(stream, "bar", noted)
    stage = Stage("one", {"connector": Train(1e-3)}, epochs=2)
    steps = data.begin(processor, stage, seed=0)
    said = capsys.readouterr().err
    assert said.startswith("lit_mm: stage 'one' counts epochs") and "`python -m lit_mm data index --config" in said
    assert shown == [("laying out one", 60)]
    assert done == list(range(1, 61))  # each sample once, whatever the epochs
    assert FaultyMixture(str(tmp_path)).begin(processor, stage, seed=0, rank=1, world=2) == steps
    assert FaultyMixture(str(tmp_path)).begin(processor, replace(stage, max_steps=3), seed=0) == 3
    assert not capsys.readouterr().err  # one rank tells, and a stage of steps lays out what it reaches
    for source in (0, 1):
        lengths.build(data.maker(processor), source)
    assert FaultyMixture(str(tmp_path)).begin(processor, stage, seed=0) == steps
    assert not capsys.readouterr().err and len(shown) == 1


def test_an_index_is_no_remedy_for_documents_without_files(processor, capsys):
    Documents(6).begin(processor, Stage("one", {"connector": Train(1e-3)}, epochs=1), seed=0)
    said = capsys.readouterr().err
    assert "all samples are laid out" in said and "data index" not in said


OPTIONS = {"global_batch": 4, "row_tokens": 192, "window": 16, "num_workers": 0, "too_long": "truncate"}
OPTIONS |= {"on_bad_sample": "quarantine", "max_bad": 0.5, "max_unsupervised": 0.5}


def test_an_interrupted_index_goes_on(data, processor, monkeypatch):
    monkeypatch.setattr(lengths, "CHUNK", 8)
    maker = data.maker(processor)

    def stop(done: int) -> None:
        if done == 21:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lengths.build(maker, 0, stop)
    assert lengths.load(maker)[0] is None
    told: list[int] = []
    lengths.build(maker, 0, told.append)
    assert told[0] == 17  # two chunks of eight were kept
    assert lengths.load(maker)[0].shape == (40, 4)
    lengths.forget(maker, 0)
    assert lengths.load(maker)[0] is None


def test_what_decides_the_lengths_decides_the_name(data, processor, tmp_path):
    maker = data.maker(processor)
    key = lengths.keys_of(maker)[0]
    assert lengths.keys_of(data.maker(xcomposer2(dropout=0.5).processor))[0] == key  # no part of the layout
    changed = [
        {"max_length": 100},
        {"tiling": partial(plan_anyres, tile=28)},
        {"prompt": Plain()},
        {"token_grid": lambda size: (3, 3)},
    ]
    given = {name: getattr(processor, name) for name in ("tiling", "layout", "token_grid", "max_length")}
    makers = [
        SampleMaker(
            maker.documents,
            Processor(processor.tokenizer, **{"prompt": processor.prompt} | given | change),
            too_long="truncate",
            row_tokens=192,
        )
        for change in changed
    ]
    makers.append(SampleMaker(maker.documents, processor, too_long="truncate", row_tokens=100))
    makers.append(SampleMaker(maker.documents, processor, too_long="refuse", row_tokens=192))
    first = LlavaConversations(str(tmp_path / "chat.jsonl"), name="chat", image_first=True)
    makers.append(Mixture([Member(first)], **OPTIONS).maker(processor))
    keys = [key, *(lengths.keys_of(one)[0] for one in makers)]
    assert len(set(keys)) == len(keys)
    with (tmp_path / "chat.jsonl").open("a") as file:
        file.write(json.dumps({"id": "more", "conversations": []}) + "\n")
    assert lengths.keys_of(FaultyMixture(str(tmp_path)).maker(processor))[0] not in keys


def test_documents_without_files_have_no_index(processor):
    maker = SampleMaker(Joined([[document(0)]], ["made"]), processor)
    assert lengths.keys_of(maker) == lengths.load(maker) == [None]


def test_a_sample_that_is_not_as_it_was_indexed_stops_the_run(tmp_path, processor, monkeypatch):
    """This holds under any `on_bad_sample`: the row could overflow, and the denominator of the loss would be wrong."""
    monkeypatch.setenv("LIT_MM_CACHE", str(tmp_path / "cache"))
    turns = [{"from": "human", "value": "what is <image> ?"}, {"from": "gpt", "value": "red"}]
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "d.jsonl").write_text(json.dumps({"id": "x", "image": "a.png", "conversations": turns}))
    data = Mixture([Member(LlavaConversations(str(tmp_path / "d.jsonl")))], **OPTIONS | {"global_batch": 1})
    stage = Stage("one", {"connector": Train(1e-3)}, max_steps=1)
    lengths.build(data.maker(processor), 0)
    data.begin(processor, stage, seed=0)
    (micro,) = data.stream
    assert data.rows[micro].sample_ids == ("x",)
    other = replace(micro, lengths=((replace(micro.lengths[0][0], supervised=9),),))
    with pytest.raises(UserError, match=r"sample 'x' has \d+ tokens, 1 views and 4 supervised.*planned.*--rebuild"):
        data.rows[other]
