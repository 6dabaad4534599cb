"""Objectives are weighted by the stage, normalised by their units and logged one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from torch.nn.functional import cross_entropy

from lit_mm.callbacks.metrics_csv import read_metrics
from lit_mm.errors import UserError
from lit_mm.families import Decoder
from lit_mm.objectives.next_token import NextToken, by_source
from lit_mm.samples.batch import Batch
from lit_mm.samples.collate import collate
from lit_mm.stages.stage import Stage, Train, check_recipe
from tests.tiny import PARTS, document, run_recipe, xcomposer2


class Places:
    """An objective that is 1 for every supervised position, so its mean over tokens is 1 under any split."""

    unit, parts = "tokens", None

    def __call__(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return torch.tensor(float(batch.num_supervised)) + 0 * next(model.parameters()).sum()


def test_a_stage_weighs_objectives_and_each_is_logged(tmp_path: Path) -> None:
    module = xcomposer2()
    module.objectives = {"next_token": NextToken(), "places": Places()}
    train = {part: Train(lr=1e-3) for part in PARTS}
    stages = [
        Stage("both", train, max_steps=2, objectives={"next_token": 0.5, "places": 3.0}),
        Stage("first", train, max_steps=1),  # names none: the model's first alone
    ]
    run_recipe(module, stages, tmp_path)
    both, again, first = read_metrics(tmp_path / "metrics.csv")
    for row in (both, again):
        assert row["loss/places"] == pytest.approx(1.0)
        assert row["loss"] == pytest.approx(0.5 * row["loss/next_token"] + 3.0 * row["loss/places"])
    assert first["loss"] == first["loss/next_token"]
    assert first["loss/places"] != first["loss/places"]  # nan: not an objective of this stage


@pytest.mark.parametrize(
    ("weights", "message"), [({"nxt": 1.0}, "unknown objectives"), ({"next_token": 0.0}, "positive")]
)
def test_unknown_objectives_and_weights_that_are_not_positive_are_refused(weights: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_recipe([Stage("s", {"p": Train(lr=1.0)}, objectives=weights)], {"p": {}}, ["next_token"])


def test_losses_are_summed_by_source() -> None:
    losses, sources = torch.tensor([1.0, 2.0, 4.0, torch.inf]), torch.tensor([0, 2, 0, 1])
    assert by_source(losses, sources, 3).tolist() == [[5.0, torch.inf, 2.0], [2.0, 1.0, 1.0]]


def test_next_token_smooths_the_labels_as_torch_does() -> None:
    module = xcomposer2().eval()
    batch = collate([module.processor.sample(document(1))], module.processor)
    hidden, ids = module.network(batch)
    expected = cross_entropy(module.network.language.logits(hidden), ids, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(NextToken(label_smoothing=0.1)(module.network, batch), expected)
    assert not torch.isclose(NextToken()(module.network, batch), expected)


def test_a_recipe_sets_the_label_smoothing() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Decoder, "model", skip={"prompt"})
    language = {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "ffn_width": 32, "vocab_size": 512}
    config = {
        "language": {"class_path": "lit_mm.language.llama.Llama", "init_args": language},
        "tokenizer": "nano",
        "next_token": {"class_path": "lit_mm.objectives.NextToken", "init_args": {"label_smoothing": 0.1}},
    }
    module = parser.instantiate(parser.parse_object({"model": config})).model
    assert module.objectives["next_token"].label_smoothing == 0.1


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.0])
def test_label_smoothing_outside_of_its_range_is_refused(label_smoothing: float) -> None:
    with pytest.raises(UserError, match="label_smoothing"):
        NextToken(label_smoothing)
