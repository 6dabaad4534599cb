"""Loader workers started by fork, forkserver and spawn make the same batches."""

from __future__ import annotations

import pickle
from itertools import product
from typing import Any

import pytest
import torch
from PIL import Image

from lit_mm.connectors.mlp import MLPProjector
from lit_mm.datamodules.conversations import Conversations
from lit_mm.datamodules.mixture import Member, Mixture
from lit_mm.datamodules.nano import NanoDocuments
from lit_mm.families import Llava15, LlavaNext, LlavaUHD, MiniGPT4, Monkey, QwenVL, XComposer, XComposer2HD
from lit_mm.prompts.source import PublishedTokenizer, load_tokenizer
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.processor import Processor
from lit_mm.stages.stage import Stage, Train
from lit_mm.stream.datamodule import StreamDataModule
from lit_mm.vision.vit import ViT
from tests.tiny import PROMPT, Documents, document, language, xcomposer2

STAGE = Stage("a", {"connector": Train(1e-2)}, max_steps=2)
FAMILIES = {
    Llava15: {"image_size": 28},
    LlavaNext: {"image_size": 28},
    LlavaUHD: {"image_size": 28},
    Monkey: {"size": (28, 56), "window": 28},
    QwenVL: {"image_size": 28},
    XComposer: {"image_size": 28, "rank": 2},
    XComposer2HD: {"tile": 28, "rank": 2},
    MiniGPT4: {"image_size": 28, "connector": MLPProjector},
}


def processor_of(family: Any) -> Processor:
    vision = ViT(28, 14, 16, layers=1, heads=2, any_size=family is LlavaUHD)
    return family(vision, language(), "nano", inputs=Inputs(prompt=PROMPT), **FAMILIES[family]).processor


@pytest.mark.parametrize("family", FAMILIES)
def test_a_processor_that_was_pickled_lays_out_equal_samples(family: Any) -> None:
    processor = processor_of(family)
    copied = pickle.loads(pickle.dumps(processor))
    one, other = (made.lay_out(document(2)) for made in (processor, copied))
    assert one.document == other.document and one.plans == other.plans and one.spans == other.spans
    for name in ("input_ids", "labels", "index"):
        assert (getattr(one, name) == getattr(other, name)).all()
    assert all(torch.equal(a, b) for a, b in zip(processor.views(one), copied.views(other), strict=True))


def test_a_tokenizer_that_is_read_when_it_is_needed_is_pickled_unread() -> None:
    copied = pickle.loads(pickle.dumps(load_tokenizer("organisation/model")))
    assert isinstance(copied, PublishedTokenizer) and vars(copied) == {"name": "organisation/model"}


def conversations(folder: Any) -> Conversations:
    Image.new("RGB", (30, 20), "red").save(folder / "red.png")
    turns = '[{"from": "human", "value": "<image>\\nwhat?"}, {"from": "gpt", "value": "red"}]'
    lines = [f'{{"id": "{n}", "image": "red.png", "conversations": {turns}}}\n' for n in range(8)]
    (folder / "data.jsonl").write_text("".join(lines))
    return Conversations(str(folder / "data.jsonl"), format="llava", images=str(folder), global_batch=2)


DATA: dict[str, Any] = {
    "tiny": lambda folder: Documents(global_batch=2),
    "nano": lambda folder: NanoDocuments(documents=8, global_batch=2, window=8),
    "conversations": conversations,
    "mixture": lambda folder: Mixture(
        [Member(NanoDocuments(documents=8, heldout_documents=0).source())], global_batch=2
    ),
}


# A new interpreter imports for seconds, so only the mixture, which holds nano documents, meets each way always
STARTS = [
    pytest.param(name, start, marks=pytest.mark.slow if start != "fork" and name != "mixture" else ())
    for name, start in product(DATA, ("fork", "forkserver", "spawn"))
]


@pytest.mark.parametrize("name", DATA)
def test_a_data_module_s_documents_can_be_pickled(name: str, tmp_path: Any) -> None:
    data: StreamDataModule = DATA[name](tmp_path)
    data.begin(xcomposer2().processor, STAGE, seed=0)
    loader = data.train_dataloader()
    micro_batch = next(iter(loader.sampler))
    ours, copied = (rows[micro_batch] for rows in (loader.dataset, pickle.loads(pickle.dumps(loader.dataset))))
    assert ours.sample_ids == copied.sample_ids and torch.equal(ours.ids, copied.ids)


@pytest.mark.parametrize(("name", "start"), STARTS)
def test_a_loader_makes_the_same_batches_however_its_workers_start(name: str, start: str, tmp_path: Any) -> None:
    def batches(workers: int) -> list[Any]:
        data: StreamDataModule = DATA[name](tmp_path)
        data.num_workers, data.worker_start = workers, start
        data.begin(xcomposer2().processor, STAGE, seed=0)
        return list(data.train_dataloader())

    for here, there in zip(batches(0), batches(1), strict=True):
        assert here.sample_ids == there.sample_ids
        assert torch.equal(here.ids, there.ids)
        assert all(torch.equal(a, b) for a, b in zip(here.views.groups, there.views.groups, strict=True))
