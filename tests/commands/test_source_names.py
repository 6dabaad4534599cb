"""A tiling of a source that the data do not have is refused by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from lit_mm.commands.source_names import check_model_sources, check_stage_sources
from lit_mm.datamodules.mixture import Member, Mixture
from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.samples.inputs import Inputs
from lit_mm.stages.stage import Stage, Train
from lit_mm.tiling import Pad
from tests.tiny import document, xcomposer2

DATA = Mixture([Member([document(0)], "docvqa_train"), Member([document(1)], "charts")], row_tokens=64, global_batch=1)
TRAIN: Mapping[str, Train] = {"connector": Train(1e-3)}


def tilings(*names: str) -> Inputs:
    return Inputs(by_source={name: Pad(28) for name in names})


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Stage("s", dict(TRAIN)), None),
        (Stage("s", dict(TRAIN), inputs=tilings("charts", "docvqa_train")), None),
        (Stage("s", dict(TRAIN), inputs=tilings()), None),
        (
            Stage("s", dict(TRAIN), inputs=tilings("charts", "docvqatrain")),
            "stages.s.inputs.by_source: the data have no source 'docvqatrain'. Did you mean 'docvqa_train'? They have "
            "charts, docvqa_train. Correct the name, or remove it",
        ),
        (
            Stage("s", dict(TRAIN), max_steps=4, inputs_from={2: tilings("zzz")}),
            "stages.s.inputs_from.2.by_source: the data have no source 'zzz'. They have charts, docvqa_train.",
        ),
    ],
)
def test_a_stage_names_sources_of_its_data(stage: Stage, message: str | None) -> None:
    if message is None:
        check_stage_sources(stage, DATA)
        return
    with pytest.raises(UserError) as refusal:
        check_stage_sources(stage, DATA)
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "reads_held_out", "right"),
    [
        ("charts", False, True),
        ("docvqa", False, True),  # a benchmark
        ("held", True, True),
        ("chart", True, False),
    ],
)
def test_a_model_names_sources_of_stages_benchmarks_or_held_out_documents(
    name: str, reads_held_out: bool, right: bool
) -> None:
    read: list[Document] = []

    def held_out() -> list[Document]:
        read.append(replace(document(2), source="held"))
        return read

    processor = xcomposer2().processor.with_inputs(tilings(name))
    if right:
        check_model_sources(processor, [DATA], held_out)
    else:
        with pytest.raises(UserError) as refusal:
            check_model_sources(processor, [DATA], held_out)
        place = "model.init_args.inputs.by_source: the data have no source 'chart'. Did you mean 'charts'? They have "
        assert str(refusal.value) == place + "charts, docvqa_train, held. Correct the name, or remove it"
    assert bool(read) == reads_held_out
    check_model_sources(None, [DATA], held_out)
