"""VILA's checkpoints of folders: encoder, projector and images are those of their configs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from lit_mm.commands.published import described
from lit_mm.errors import UserError
from lit_mm.tiling import Stretch
from lit_mm.vision.timm_encoder import TimmEncoder
from lit_mm.weights.convert import load_strict, read_checkpoint
from lit_mm.weights.layouts.layout import layout_of
from lit_mm.weights.layouts.sizes import siglip_part
from lit_mm.weights.source import MAPS, load_part
from tests import hub


def edit(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


@pytest.fixture(scope="module")
def vila(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.vila_1_5(tmp_path_factory.mktemp("hub") / "vila")


@torch.inference_mode()
def test_siglip_gives_the_features_of_transformers_from_the_pixels_that_fill_patches(vila: Path) -> None:
    tower = described(vila)[0].inside("vision_tower")
    tower = replace(tower, config=tower.config | {"layer_norm_eps": 1e-3})
    ours = TimmEncoder(**siglip_part(tower, -2)["init_args"]).eval()
    state = {name: tensor.float() for name, tensor in read_checkpoint(tower.folder).items()}
    load_strict(ours, MAPS["siglip"](state, ours))
    theirs = SiglipVisionModel(SiglipVisionConfig(**hub.SIGLIP, layer_norm_eps=1e-3)).eval()
    theirs.load_state_dict({name.removeprefix("vision_model."): tensor for name, tensor in state.items()})
    pixels = torch.randn(2, 3, 44, 44)
    expected = theirs(pixels, output_hidden_states=True).hidden_states[-2]
    assert ours.image_size == 42 and ours.mean == ours.std == (0.5, 0.5, 0.5)
    torch.testing.assert_close(ours(pixels[..., :42, :42]), expected, rtol=0, atol=1e-5)


def test_weights_of_siglip_are_compared_with_the_part(vila: Path) -> None:
    tower = described(vila)[0].inside("vision_tower")
    arguments = siglip_part(tower, -2)["init_args"]
    part = TimmEncoder(**arguments)
    assert load_part(part, f"siglip:{tower.folder}", "vision") == []
    assert part.compare_config({"model_type": "siglip", "vision_config": tower.config}) == []  # both halves
    (difference,) = part.compare_config(tower.config | {"hidden_act": "gelu"})
    assert (difference.key, difference.published, difference.present) == ("hidden_act", "gelu", "gelu_pytorch_tanh")


CASES = [  # projector, encoder, keys of config.json, connector, its linears, tiling
    ("mlp_downsample", "siglip", {}, "DownsampleMLP", ["0", "1", "3"], ("Stretch", {"size": 44, "patch": 14})),
    ("mlp2x_gelu", "clip", {}, "MLPProjector", ["0", "2"], ("Pad", {"size": 28})),
    ("linear", "clip", {"image_aspect_ratio": "square"}, "linear_projector", ["0"], ("CentreCrop", {"size": 28})),
    ("mlp2x_gelu", "clip", {"image_aspect_ratio": "resize"}, "MLPProjector", ["0", "2"], ("Stretch", {"size": 28})),
]


@pytest.mark.parametrize(("projector", "tower", "keys", "connector", "layers", "tiling"), CASES)
def test_the_parts_are_those_of_the_folders(
    projector: str,
    tower: str,
    keys: dict[str, Any],
    connector: str,
    layers: list[str],
    tiling: tuple[str, Any],
    tmp_path: Path,
) -> None:
    main, files = described(hub.vila_1_5(tmp_path / "vila", projector, tower, **keys))
    layout = layout_of(main)
    section = layout.model(main)
    arguments = section["init_args"]
    assert layout.name == "vila_1_5/authors" and arguments["connector"].endswith(f".{connector}")
    view = arguments["inputs"]["tiling"]
    assert (view["class_path"].rpartition(".")[2], view["init_args"]) == tiling
    assert arguments["tokenizer"] == str(tmp_path / "vila" / "llm")
    names = layout.rename(dict(files), section)
    assert sorted(n.split(".")[3] for n in names if ".connector." in n and n.endswith("weight")) == layers
    assert {name.split(".")[1] for name in names} == {"vision", "connector", "language"}


REFUSED = [  # file, keys, message
    ("vision_tower", {"model_type": "intern_vit_6b"}, "vision encoder of model_type 'intern_vit_6b', which no part"),
    ("vision_tower", {"hidden_act": "gelu"}, "hidden_act is 'gelu', and only 'gelu_pytorch_tanh' can be imported"),
    ("mm_projector", {"mm_projector_type": "mlp_downsample_3x3_fix"}, "mm_projector_type is 'mlp_downsample_3x3_fix'"),
    (".", {"s2": True}, "s2 is True, and only False can be imported"),
    (".", {"image_aspect_ratio": "dynamic_s2"}, "image_aspect_ratio is 'dynamic_s2', and only 'resize', 'pad'"),
    (".", {"mm_vision_select_feature": "patch"}, "mm_vision_select_feature is 'patch', and only 'cls_patch'"),
]


@pytest.mark.parametrize(("place", "keys", "message"), REFUSED)
def test_parts_that_cannot_be_computed_are_named(vila: Path, place: str, keys: dict[str, Any], message: str) -> None:
    file = vila / place / "config.json"
    text = file.read_text()
    edit(file, **keys)
    try:
        main = described(vila)[0]
        with pytest.raises(UserError) as refusal:
            layout_of(main).model(main)
    finally:
        file.write_text(text)
    assert message in str(refusal.value)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    folder = hub.vila_1_5(tmp_path / "vila")
    (folder / "mm_projector" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="mm_projector' holds no weights"):
        described(folder)


def test_a_stretched_view_holds_whole_patches() -> None:
    (view,) = Stretch(384, patch=14)(480, 640).views
    assert view.resize == view.canvas == (384, 384) and view.box == (0, 0, 378, 378) and view.size == (378, 378)
    with pytest.raises(UserError, match="`patch` is at most `size`, got 14 and 10"):
        Stretch(10, patch=14)(480, 640)
