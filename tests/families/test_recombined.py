"""Parts of several papers are combined in one model.

All legal combinations are computed from tables of parts. At least 60 of them are built from a config, trained, saved,
loaded and asked: a dozen always, the others with `-m slow`. Illegal combinations are refused when they are built.
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from lit_mm.checkpoints import manifest, reading
from lit_mm.combination.declared import Tiling, require_combination
from lit_mm.commands.mistakes import cause_of
from lit_mm.connectors.learned import WithLearned
from lit_mm.errors import UserError
from lit_mm.families.recombined import Recombined
from lit_mm.inference.generate import answer
from lit_mm.language.cross_attention import CrossAttentionSettings
from lit_mm.language.llama import Llama
from lit_mm.language.visual_expert import VisualExpert
from lit_mm.module import MultimodalModule, family_of
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.samples.collate import collate
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.layout import BaseThenUnpaddedRows, InOrder, Layout, SharedPosition
from lit_mm.stages import Cosine
from lit_mm.stages.stage import Stage, Train
from lit_mm.tiling import CentreCrop, TwoSizes, Windows
from lit_mm.vision.vit import ViT
from tests.rows import states
from tests.tiny import MODEL, document, run_recipe

AT_LEAST = 60  # combinations that are trained
ALWAYS = 12  # those of them that need no `-m slow`
SIDE = 28  # of a view, pixels: 2 x 2 patches
VIT = "lit_mm.vision.vit.ViT"
WIDTH = MODEL["init_args"]["language"]["init_args"]["width"]
SIZE = {"patch": 14, "width": 16, "layers": 2, "heads": 2}


def spec(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments}


# --- the parts -------------------------------------------------------------------------------------------------------
VISION = {
    "last block": spec(VIT, image_size=SIDE, **SIZE),
    "last block but one": spec(VIT, image_size=SIDE, select_layer=-2, **SIZE),
    "of another size": spec(VIT, image_size=2 * SIDE, **SIZE),
    "any size": spec(VIT, image_size=SIDE, any_size=True, **SIZE),
    "class token": spec(VIT, image_size=SIDE, drop_cls=False, **SIZE),
    "eva": spec(
        "lit_mm.vision.timm_encoder.TimmEncoder",
        name="eva_giant_patch14_clip_224",
        image_size=SIDE,
        drop_cls=False,
        overrides={"embed_dim": 16, "depth": 2, "num_heads": 2},
    ),
    "window adapters": spec(VIT, image_size=SIDE, **SIZE),
}
VISION_INJECTIONS = {
    "window adapters": spec(
        "lit_mm.vision.window_adapters.WindowAdapters", windows=2, ranks={"qkv": 2, "mlp": 2}, dropout=0.0
    )
}
CONNECTORS = {
    "linear": spec("lit_mm.connectors.mlp.MLPProjector", depth=1),
    "mlp": spec("lit_mm.connectors.mlp.MLPProjector", standardise=True, start=0.3),
    "downsample": spec("lit_mm.connectors.downsample.DownsampleMLP"),
    "merge": spec("lit_mm.connectors.merge.MergeMLP"),
    "resampler": spec("lit_mm.connectors.resampler.NormalisedResampler", grid_size=2, heads=2),
    "slice resampler": spec("lit_mm.connectors.slice_resampler.SliceResampler", side=2, heads=2),
    "q-former": spec(
        "lit_mm.connectors.qformer_projector.QFormerProjector", queries=4, width=16, layers=2, heads=2, ffn_width=32
    ),
}
TILINGS = {
    "stretch": spec("lit_mm.tiling.Stretch", size=SIDE),
    "crop": spec("lit_mm.tiling.CentreCrop", size=SIDE),
    "pad": spec("lit_mm.tiling.Pad", size=SIDE),
    "anyres": spec("lit_mm.tiling.AnyRes", tile=SIDE),
    "hd": spec("lit_mm.tiling.Hd", tile=SIDE, max_tiles=4),
    "windows": spec("lit_mm.tiling.Windows", size=[SIDE, 2 * SIDE], window=SIDE),
    "slices": spec("lit_mm.tiling.Uhd", size=SIDE, max_slices=4),
}
LAYOUTS = {
    "in order": "lit_mm.samples.InOrder",
    "unpadded rows": "lit_mm.samples.BaseThenUnpaddedRows",
    "global then tiles": "lit_mm.samples.GlobalThenTiles",
    "slices then overview": "lit_mm.samples.SlicesThenOverview",
    "between flags": "lit_mm.samples.BetweenFlags",
}
LEARNED = {"none": [], "newline": ["newline"], "both": ["newline", "separator"]}
INJECTIONS = {
    "plain": None,
    "partial lora": spec("lit_mm.language.partial_lora.PartialLoRA", rank=2, dropout=0.0),
    "lora": spec("lit_mm.layers.adapters.LoRA", rank=2, dropout=0.0),
    "visual expert": spec("lit_mm.language.visual_expert.VisualExpert"),
}
PART = {"plain": None, "partial lora": "partial_lora", "lora": "lora", "visual expert": "visual_expert"}


TABLES = (VISION, CONNECTORS, TILINGS, LAYOUTS, LEARNED, INJECTIONS)
NAMES = [list(table) for table in TABLES]


class Combination(NamedTuple):
    """A combination has one name from each table."""

    vision: str
    connector: str
    tiling: str
    layout: str
    learned: str
    injection: str

    def config(self) -> dict[str, Any]:
        """Write the combination as the config of a recipe."""
        return {
            "class_path": "lit_mm.families.Recombined",
            "init_args": {
                "vision": VISION[self.vision],
                "language": MODEL["init_args"]["language"],
                "tokenizer": "nano",
                "inputs": {
                    "tiling": TILINGS[self.tiling],
                    "layout": LAYOUTS[self.layout],
                    "prompt": MODEL["init_args"]["inputs"]["prompt"],
                },
                "connector": CONNECTORS[self.connector],
                "learned": LEARNED[self.learned],
                "injection": INJECTIONS[self.injection],
                "vision_injection": VISION_INJECTIONS.get(self.vision),
            },
        }


def build(config: dict[str, Any]) -> Recombined:
    """Build the model of a config.

    Raises:
        UserError: the combination is refused.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(MultimodalModule, "model")
    torch.manual_seed(0)
    try:
        return parser.instantiate(parser.parse_object({"model": config})).model
    except Exception as error:
        cause = cause_of(error)
        if cause is None:
            raise
        raise UserError(str(cause)) from error


# --- which go together -----------------------------------------------------------------------------------------------
@cache
def parts_of(vision: str, connector: str, learned: str) -> tuple[nn.Module, nn.Module]:
    """Vision encoder, and connector with the learned vectors beside it."""
    encoder = made(VISION[vision])
    if vision in VISION_INJECTIONS:
        made(VISION_INJECTIONS[vision])(encoder)
    bare = made(CONNECTORS[connector], encoder.width, WIDTH)
    return encoder, WithLearned(bare, LEARNED[learned], WIDTH) if LEARNED[learned] else bare


def made(part: dict[str, Any] | str, *widths: int) -> Any:
    part = spec(part) if isinstance(part, str) else part
    place, _, name = part["class_path"].rpartition(".")
    return getattr(importlib.import_module(place), name)(*widths, **part["init_args"])


@cache
def tiling_of(name: str) -> Tiling:
    return made(TILINGS[name])


@cache
def layout_of(name: str) -> Layout:
    return made(LAYOUTS[name])


@cache
def refusal(vision: str, connector: str, tiling: str, layout: str, learned: str) -> str | None:
    """Reason why the parts do not fit together, or None."""
    encoder, beside = parts_of(vision, connector, learned)
    plan, arrange = tiling_of(tiling), layout_of(layout)
    try:
        require_combination(encoder, beside, plan, arrange, "model.init_args")
    except UserError as error:
        return str(error)
    return None


@cache
def sorted_out() -> tuple[list[Combination], dict[Combination, str]]:
    """Legal combinations, and illegal ones with the reason. The injection fits every combination and is left out."""
    reasons = {one: refusal(*one[:-1]) for one in map(Combination._make, product(*NAMES))}
    legal = [one for one, reason in reasons.items() if reason is None]
    return legal, {one: reason for one, reason in reasons.items() if reason is not None}


@cache
def trained() -> list[Combination]:
    """Few legal combinations that contain every legal pair of parts, and evenly spread others up to `AT_LEAST`."""
    legal, _ = sorted_out()
    pairs = {one: set(combinations(enumerate(one), 2)) for one in legal}
    unmet, chosen = set().union(*pairs.values()), []
    while unmet:
        chosen.append(max(legal, key=lambda one: len(pairs[one] & unmet)))
        unmet -= pairs[chosen[-1]]
    rest = [one for one in legal if one not in chosen]
    missing = max(0, AT_LEAST - len(chosen))
    return chosen + [rest[number * len(rest) // missing] for number in range(missing)]


def test_a_dozen_legal_combinations_train_save_load_and_generate(tmp_path: Path) -> None:
    run_all(trained()[:ALWAYS], tmp_path)


@pytest.mark.slow
def test_at_least_sixty_legal_combinations_train_save_load_and_generate(tmp_path: Path) -> None:
    chosen = trained()
    assert len(set(chosen)) == len(chosen) >= AT_LEAST
    run_all(chosen[ALWAYS:], tmp_path)


def run_all(chosen: list[Combination], folder: Path) -> None:
    for number, one in enumerate(chosen):
        try:
            run(one, folder / str(number))
        except Exception as error:
            error.add_note(f"in the combination {one}")
            raise


def run(one: Combination, folder: Path) -> None:
    """Build, train two steps, save, load into a new model, compare, and generate with both."""
    config = one.config()
    module = build(config)
    before = {name: value.clone() for name, value in module.network.state_dict().items()}
    parts = module.parts()
    added = {PART[one.injection], *(["window_adapters"] if one.vision in VISION_INJECTIONS else [])} - {None}
    expected = {"vision", "connector", "language", *LEARNED[one.learned], *added}
    assert expected <= parts.keys()
    stage = Stage("all", {part: Train(lr=1e-2) for part in parts}, max_steps=2, schedule=Cosine(0.0))
    run_recipe(module, [stage], folder, count=6, global_batch=2, row_tokens=512, window=6)
    changed = [name for name, value in module.network.state_dict().items() if not value.equal(before[name])]
    assert {"vision", "connector", "language", *added} <= set(map(module.part_of, changed))

    path = manifest.find(str(folder))
    again = build(config)
    reading.load_weights(again, reading.read(path), family_of(again))
    assert torch.equal(logits(module), logits(again))
    asked = [document(number, pictures=2) for number in range(2)]
    said = answer(module, asked, max_new_tokens=3)
    assert said == answer(again, asked, max_new_tokens=3)
    assert len(said) == 2


@torch.no_grad()
def logits(module: Recombined) -> Tensor:
    """Logits of the model on two documents with two images each."""
    samples = [module.processor.sample(document(number, pictures=2)) for number in range(2)]
    hidden = states(module.eval().network, collate(samples, module.processor))
    return module.network.language.logits(hidden)


def test_what_is_refused_is_refused_when_it_is_built_with_reason_and_nearest_choice() -> None:
    _, illegal = sorted_out()
    told: dict[str, Combination] = {}
    for one, reason in illegal.items():
        told.setdefault(reason.partition(" The nearest")[0], one)
    assert len(told) > 4
    for one in told.values():
        with pytest.raises(UserError, match=f"^{re.escape(illegal[one])}$"):
            build(one.config())


def test_the_nearest_choice_is_one_that_is_built() -> None:
    """The YAML that a message suggests is applied to the config."""
    _, illegal = sorted_out()
    tried = set()
    for one, reason in illegal.items():
        choice = reason.partition("The nearest that goes: ")[2]
        written = re.findall(r"`([a-z_.]+: [^`]+)`", choice)
        if written and len(written) == choice.count(" and ") + 1 and choice not in tried:
            tried.add(choice)
            config = one.config()
            for line in written:
                ((key, value),) = yaml.safe_load(line).items()
                change(config["init_args"], key, value)
            if config["init_args"]["vision"]["class_path"] == VIT or "any_size" not in choice:  # of ViT alone
                assert isinstance(build(config), Recombined), reason
    assert len(tried) > 4


def change(arguments: dict[str, Any], key: str, value: Any) -> None:
    """Apply the suggestion of a message: a key of the model, of its inputs or of its vision encoder."""
    if key.startswith("vision.init_args."):
        options = arguments["vision"]["init_args"] | {key.rpartition(".")[2]: value}
        arguments["vision"] = arguments["vision"] | {"init_args": options}
    elif key == "vision_injection.init_args.windows":
        chosen = arguments["vision_injection"]
        arguments["vision_injection"] = chosen | {"init_args": chosen["init_args"] | {"windows": value}}
    elif key in ("layout", "tiling"):
        arguments["inputs"] = arguments["inputs"] | {key: value}
    else:
        arguments[key] = {"class_path": value} if key == "connector" else value


def stage(inputs: Inputs) -> Stage:
    return Stage("pretrain", {"connector": Train(lr=1e-2)}, inputs=inputs)


def test_a_stage_with_inputs_that_do_not_go_is_named() -> None:
    config = Combination("last block", "mlp", "pad", "in order", "none", "plain").config()
    with pytest.raises(UserError, match=r"^stages\.pretrain\.inputs: the layout places 1 learned vector"):
        build(config).processor_of(stage(Inputs(layout=BaseThenUnpaddedRows())))


def test_window_adapters_go_with_windows_alone() -> None:
    legal, illegal = sorted_out()
    assert {one.tiling for one in legal if one.vision == "window adapters"} == {"windows"}
    told = {reason for one, reason in illegal.items() if one.vision == "window adapters" and one.tiling != "slices"}
    assert any("has adapters for 2 windows, the tiling cuts none that are the same for every" in one for one in told)
    config = Combination("window adapters", "mlp", "windows", "in order", "none", "plain").config()
    assert {"vision", "window_adapters"} <= build(config).parts().keys()
    with pytest.raises(UserError, match=r"pretrain\.inputs: .* for 2 windows, the tiling cuts every image into 1024"):
        build(config).processor_of(stage(Inputs(Windows(window=SIDE))))
    config = Combination("window adapters", "mlp", "windows", "in order", "none", "plain").config()
    config["init_args"]["vision"] = VISION["eva"]
    with pytest.raises(UserError, match="window adapters need a ViT, got TimmEncoder"):
        build(config)


def test_a_stage_may_lay_out_its_documents_otherwise() -> None:
    config = Combination("last block", "mlp", "anyres", "unpadded rows", "newline", "plain").config()
    module = build(config)
    assert module.processor.visual_tokens(28, 56) == 4 + 2 * (4 + 1)
    assert module.processor_of(stage(Inputs(CentreCrop(SIDE), InOrder()))).visual_tokens(28, 56) == 4


def test_a_model_without_a_tiling_is_told_what_to_write() -> None:
    config = Combination("last block", "mlp", "pad", "in order", "none", "plain").config()
    del config["init_args"]["inputs"]["tiling"]
    with pytest.raises(UserError, match=r"Recombined needs a `tiling`, such as .*lit_mm\.tiling\.Pad"):
        build(config)


def test_what_an_injection_adds_is_a_part_named_after_it() -> None:
    config = Combination("last block", "mlp", "pad", "in order", "none", "partial lora").config()
    module = build(config)
    parts = module.parts()
    assert set(parts) == {"vision", "connector", "language", "partial_lora"}
    assert all(".lora_" in name for name in parts["partial_lora"])
    assert not any(".lora_" in name for name in parts["language"])
    plain = build(config | {"init_args": config["init_args"] | {"injection": None}}).parts()["language"]
    assert sum(p.numel() for p in plain.values()) == sum(p.numel() for p in parts["language"].values())


def test_an_encoder_of_timm_normalises_pixels_by_its_own_constants() -> None:
    config = Combination("last block", "mlp", "anyres", "unpadded rows", "newline", "plain").config()
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    name = "vit_so400m_patch14_siglip_378.v2_webli"
    config["init_args"]["vision"] = spec(
        "lit_mm.vision.timm_encoder.TimmEncoder", name=name, image_size=SIDE, overrides=sizes
    )
    module = build(config)
    assert module.processor.normalise.mean == module.processor.normalise.std == (0.5, 0.5, 0.5)
    batch = collate([module.processor.sample(document(1))], module.processor)
    with torch.no_grad():
        assert states(module.eval().network, batch).isfinite().all()


def two_encoders(**changes: Any) -> Recombined:
    vision, second = (ViT(image_size=side, patch=14, width=16, layers=1, heads=2) for side in (28, 42))
    decoder = Llama(width=WIDTH, layers=2, heads=4, kv_heads=2, ffn_width=24, vocab_size=512)
    arguments = {"second_vision": second, "cross_attention": CrossAttentionSettings(8, 2)} | changes
    inputs = Inputs(tiling=TwoSizes(28, 42), layout=SharedPosition(), prompt=ChatPrompt())
    return Recombined(vision, decoder, "nano", inputs, learned=["start", "end"], injection=VisualExpert(), **arguments)


def test_a_second_encoder_and_cross_attention_can_be_combined_with_a_visual_expert(tmp_path: Path) -> None:
    module = two_encoders()
    assert {"second_vision", "cross_attention", "visual_expert", "start", "end"} <= module.parts().keys()
    stage = Stage("all", {part: Train(lr=1e-2) for part in module.parts()}, max_steps=2)
    run_recipe(module, [stage], tmp_path, count=6, global_batch=2, row_tokens=512, window=6)
    again = two_encoders()
    reading.load_weights(again, reading.read(manifest.find(str(tmp_path))), family_of(again))
    assert torch.equal(logits(module), logits(again))
    assert len(answer(again, [document(1, pictures=2)], max_new_tokens=3)) == 1


@pytest.mark.parametrize("missing", ["second_vision", "cross_attention"])
def test_a_second_encoder_without_cross_attention_is_refused(missing: str) -> None:
    with pytest.raises(UserError, match="needs `second_vision` and `cross_attention` together"):
        two_encoders(**{missing: None})


def dual() -> dict[str, Any]:
    """The config of a model whose coarse encoder mines a fine one."""
    config = Combination("last block", "mlp", "pad", "in order", "none", "plain").config()
    fine = spec(VIT, image_size=2 * SIDE, **SIZE | {"patch": 7})
    config["init_args"]["vision"] = spec("lit_mm.vision.dual.DualEncoder", low=VISION["last block"], high=fine)
    config["init_args"]["mining"] = spec("lit_mm.connectors.patch_info_mining.PatchInfoMining")
    config["init_args"]["inputs"] = config["init_args"]["inputs"] | {"tiling": spec("lit_mm.tiling.Pad", size=2 * SIDE)}
    return config


def test_mining_can_be_chosen_and_is_trained_saved_loaded_and_asked(tmp_path: Path) -> None:
    module = build(dual())
    parts = module.parts()
    assert set(parts) == {"vision", "second_vision", "connector", "language"}
    stage = Stage("all", {part: Train(lr=1e-2) for part in parts}, max_steps=2, schedule=Cosine(0.0))
    run_recipe(module, [stage], tmp_path, count=6, global_batch=2, row_tokens=512, window=6)
    again = build(dual())
    path = manifest.find(str(tmp_path))
    reading.load_weights(again, reading.read(path), family_of(again))
    assert torch.equal(logits(module), logits(again))
    documents = [document(number, pictures=number) for number in range(3)]
    assert answer(module, documents, max_new_tokens=3) == answer(again, documents, max_new_tokens=3)


def test_mining_needs_two_encoders_and_two_encoders_need_mining() -> None:
    alone = dual()
    alone["init_args"]["vision"] = VISION["last block"]
    with pytest.raises(UserError, match="ViT has no features at two resolutions"):
        build(alone)
    without = dual()
    del without["init_args"]["mining"]
    with pytest.raises(UserError, match="two resolutions, which MLPProjector does not read"):
        build(without)
