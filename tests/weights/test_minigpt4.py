"""MiniGPT-4 starts from BLIP-2's Q-Former without its projection, and its layout reads both kinds of projections."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_mm.commands.published import described
from lit_mm.errors import UserError
from lit_mm.weights.convert import read_checkpoint
from lit_mm.weights.layouts.layout import Described, layout_of
from lit_mm.weights.source import load_part
from tests import hub
from tests.tiny_blip2 import qformer


def opened(place: Path, **parts: Path) -> Described:
    return described(place, {part: described(path)[0] for part, path in parts.items()})[0]


def test_a_q_former_of_another_language_model_leaves_the_projection_fresh(tmp_path: Path) -> None:
    file = hub.blip2_t5(tmp_path)  # the tensors are under "model", and its projection has the same shape
    connector = qformer(
        88, 32, queries=8, width=64, heads=1, ffn_width=96, vocab_size=None, head=False, contrast_width=None
    )
    start = connector.projection.weight.clone()
    load_part(connector, f"blip2-qformer:{file}", "connector")
    published = read_checkpoint(file)
    assert torch.equal(connector.projection.weight, start)
    assert torch.equal(connector.qformer.queries, published["query_tokens"][0].float())
    assert torch.equal(connector.norm.weight, published["ln_vision.weight"].float())


def test_a_projection_of_groups_of_patches_needs_no_q_former(tmp_path: Path) -> None:
    torch.save({"model": hub.half(hub.linear("llama_proj", 32, 4 * 88))}, tmp_path / "llama2.pth")
    parts = {"vision": hub.eva_vit_g(tmp_path / "eva"), "language": hub.vicuna(tmp_path / "llama")}
    main = opened(tmp_path / "llama2.pth", **parts)
    section = layout_of(main).model(main)["init_args"]
    assert section["connector"] == {
        "class_path": "lit_mm.connectors.grouped.GroupedProjector",
        "init_args": {"group": 4},
    }
    assert section["vision"]["init_args"]["drop_cls"]
    assert section["inputs"]["prompt"]["init_args"] == {"template": "llama_2_chat"}


@pytest.mark.parametrize(
    ("names", "error"),
    [
        ((), "has no part 'language'; expected Vicuna version 0"),
        (("language",), "has no part 'vision'; expected eva_vit_g.pth of LAVIS. Add --with vision=PLACE"),
        (("language", "vision"), "has no part 'connector'; expected blip2_pretrained_flant5xxl.pth"),
    ],
)
def test_a_missing_part_is_named_with_what_belongs_there(names: tuple[str, ...], error: str, tmp_path: Path) -> None:
    writers = {"language": hub.vicuna, "vision": hub.eva_vit_g}
    main = opened(hub.minigpt4(tmp_path), **{name: writers[name](tmp_path / name) for name in names})
    with pytest.raises(UserError, match=error):
        layout_of(main).model(main)


def test_a_projection_that_fits_no_q_former_is_refused_with_both_widths(tmp_path: Path) -> None:
    torch.save({"model": hub.half(hub.linear("llama_proj", 32, 48))}, tmp_path / "other.pth")
    parts = {"vision": hub.eva_vit_g, "connector": hub.blip2_t5, "language": hub.vicuna}
    main = opened(tmp_path / "other.pth", **{part: write(tmp_path / part) for part, write in parts.items()})
    with pytest.raises(UserError, match=r"reads 48 channels, .* groups of patches of 88 channels"):
        layout_of(main).model(main)
