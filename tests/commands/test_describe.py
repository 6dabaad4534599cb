"""`describe` works on the tiny recipe and on every recipe of the project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_mm.cli import main
from lit_mm.commands import cost_tables
from lit_mm.commands.costs import rows_of_data
from lit_mm.commands.describe import open_recipe
from lit_mm.commands.options import Arguments
from lit_mm.commands.sizes import read_sizes
from lit_mm.distributed.memory import RankMemory, Spread, plan_memory, weights_of
from lit_mm.errors import UserError
from lit_mm.stream import lengths
from tests.tiny import MODEL

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
RECIPES = sorted(path for path in EXPERIMENTS.rglob("*.yaml") if path.parent.name not in ("overlays", "sweeps"))
LLAVA = {
    "class_path": "lit_mm.families.LlavaNext",
    "init_args": {
        **{name: MODEL["init_args"][name] for name in ("vision", "tokenizer")},
        "language": {
            "class_path": "lit_mm.language.llama.Llama",
            "init_args": {**MODEL["init_args"]["language"]["init_args"], "tie_embeddings": True},
        },
        "image_size": 28,
    },
}
CROP = {
    "tiling": {"class_path": "lit_mm.tiling.CentreCrop", "init_args": {"size": 28}},
    "layout": "lit_mm.samples.InOrder",
}
EMBEDDINGS = 512 * 16


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def described(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run `describe --format json` on a config file and parse the output."""

    def run(path: str | Path, *options: str) -> dict[str, Any]:
        capsys.readouterr()
        main(["describe", "--config", str(path), "--format", "json", *options])
        return json.loads(capsys.readouterr().out)

    return run


def write(model: dict[str, Any] = LLAVA, **data: Any) -> str:
    """Write a recipe in which a part thaws late, `newline` is trained last, and one stage counts epochs."""
    stages = [
        {"name": "pretrain", "train": {"connector": {"lr": 1e-3}}, "max_steps": 3}
        | ({"inputs": CROP} if model is LLAVA else {}),
        {
            "name": "finetune",
            "train": {"language": {"lr": 1e-3}, "connector": {"lr": 1e-3, "from_step": 7}},
            "epochs": 2,
            "data": {"global_batch": 6},
        },
    ]
    made = {"documents": 8, "global_batch": 2, "row_tokens": None} | data
    described = {"class_path": "lit_mm.datamodules.nano.NanoDocuments", "init_args": made}
    recipe = {"model": model, "stages": stages, "data": described, "trainer": {"accelerator": "cpu"}}
    Path("tiny.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return "tiny.yaml"


# --- every recipe ----------------------------------------------------------------------------------------------------
# A published plan takes seconds; those that tests/parity compares with published integers are described there, too
ALWAYS = ("blip2_opt", "cogagent", "fuyu", "llava_1_5", "minigpt4", "xcomposer2")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow if path.parent.name == "paper" and path.stem not in ALWAYS else ())
        for path in RECIPES
    ],
    ids=[str(path.relative_to(EXPERIMENTS)) for path in RECIPES],
)
def test_every_recipe_is_described_and_its_counts_add_up(
    path: Path, described: Callable, published_plan: Callable
) -> None:
    published = path.parent.name == "paper"
    plan = published_plan(path) if published else described(path)
    recipe = yaml.safe_load(path.read_text())
    total, parts = plan["parameters"]["total"], plan["parameters"]["parts"]
    assert total == sum(parts.values()) > 0
    assert [stage["name"] for stage in plan["stages"]] == [stage["name"] for stage in recipe["stages"]]
    for stage, written in zip(plan["stages"], recipe["stages"], strict=True):
        train = {part: keys for part, keys in written["train"].items() if part in parts or "optional" not in keys}
        names = {part: f"{part}_adapter" if "adapter" in keys else part for part, keys in train.items()}
        assert list(stage["trainable"]) == list(names.values())
        assert all(stage["trainable"][name] == parts[part] for part, name in names.items() if part == name)
        assert stage["trainable_total"] == sum(stage["trainable"].values())
        if path.stem != "adapters":  # parts that come and go
            assert stage["frozen_total"] == total - stage["trainable_total"]
        assert stage["steps"] == written.get("max_steps")
    if published:  # visual tokens are counted without the tokenizer
        assert [(image["width"], image["height"]) for image in plan["images"]] == [(336, 336), (1008, 672)]
        by_cross_attention = path.stem in ("blip", "blip_capfilt_l")  # their text holds no visual token
        for image in plan["images"]:
            assert (image["visual_tokens"] > 0) is not by_cross_attention and image["views"] > 0


# --- stages ----------------------------------------------------------------------------------------------------------
def test_tied_embeddings_count_once_and_parts_that_no_stage_names_are_frozen(described: Callable) -> None:
    plan = described(write())
    untied = described(write(), "--model.init_args.language.init_args.tie_embeddings", "false")
    parts = plan["parameters"]["parts"]
    assert set(parts) == {"vision", "connector", "newline", "language"}
    assert untied["parameters"]["total"] - plan["parameters"]["total"] == EMBEDDINGS
    assert untied["stages"][1]["trainable"]["language"] - plan["stages"][1]["trainable"]["language"] == EMBEDDINGS
    pretrain, finetune = plan["stages"]
    assert pretrain["trainable"] == {"connector": parts["connector"]}
    assert finetune["frozen_total"] == parts["vision"] + parts["newline"]


def test_a_part_that_thaws_late_is_trainable_from_its_step(described: Callable) -> None:
    pretrain, finetune = described(write())["stages"]
    assert (pretrain["from_step"], finetune["from_step"]) == ({}, {"connector": 7})
    assert (pretrain["idle_steps"], finetune["idle_steps"]) == (0, 0)
    assert finetune["trainable"].keys() == {"language", "connector"}


def test_an_adapter_that_is_merged_counts_in_its_stage_alone(described: Callable) -> None:
    tune, polish = described(EXPERIMENTS / "adapters.yaml")["stages"][1:]
    layer = 2 * 192 + 2 * (192 + 64) + 2 * 192 + 3 * (192 + 512)  # of q; k and v; o; gate, up and down
    assert tune["trainable"]["language_adapter"] == 4 * 16 * layer
    assert polish["trainable"]["language_adapter"] == 4 * 16 * (2 * 192 + 192 + 64)
    assert tune["trainable"]["vision_adapter"] > 0 and "vision_adapter" not in polish["trainable"]
    assert tune["frozen_total"] + tune["trainable"]["vision_adapter"] == polish["frozen_total"]


def test_length_and_batch_are_told_where_they_are_known(described: Callable) -> None:
    pretrain, finetune = described(write())["stages"]
    assert (pretrain["steps"], pretrain["epochs"], pretrain["samples_per_step"]) == (3, None, 2)
    assert (finetune["steps"], finetune["epochs"], finetune["samples_per_step"]) == (None, 2, 6)
    packed = described(write(row_tokens=64))["stages"][0]
    assert (packed["rows_per_step"], packed["samples_per_step"]) == (2, None)


@pytest.mark.parametrize(
    ("ranks", "depends_on"),
    [
        ("2", {"itc": "compares each pair with the 8 pairs of its rank and 96 earlier ones: 16 pairs = 8 x 2"}),
        ("3", {"itc": "needs all 16 pairs of a step in one forward, got 5 x 3"}),
    ],
)
def test_objectives_that_compare_samples_say_on_what_they_depend(
    ranks: str, depends_on: dict[str, str], described: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(__file__).parents[2] / "experiments/blip.yaml"
    words = ("--data.init_args.global_batch", "16", "--model.init_args.queue_size", "96", "--ranks", ranks)
    pretrain, caption, _ = described(path, *words)["stages"]
    assert pretrain["depends_on"].keys() == {"itc", "itm"} and caption["depends_on"] == {}
    assert depends_on.items() <= pretrain["depends_on"].items()
    main(["describe", "--config", str(path), *words])
    lines = capsys.readouterr().out.splitlines()
    assert "objectives that depend on the batch and its split" in lines
    assert f"pretrain, itc: {depends_on['itc']}" in lines


def test_picked_stages_are_described_alone(described: Callable) -> None:
    assert [stage["name"] for stage in described(write(), "--stages", "finetune")["stages"]] == ["finetune"]


# --- memory ----------------------------------------------------------------------------------------------------------
def figures(plan: RankMemory) -> dict[str, Any]:
    """Parse a plan from the JSON output."""
    held = {place: asdict(getattr(plan, place)) for place in ("device", "host")}
    totals = {"device": plan.device.total, "host": plan.host.total}
    return {place: held[place] | {"total": totals[place]} for place in held} | {"largest_layer": plan.largest_layer}


CLASS = ["--trainer.strategy", "lit_mm.distributed.zero.ZeRO"]
SMALL = ["--trainer.strategy.bucket", "4096", "--trainer.strategy.keep_whole", "0"]
OFFLOADED = ["--trainer.strategy.offload_optimizer", "true", "--trainer.strategy.offload_parameters", "true"]


@pytest.mark.parametrize(
    ("options", "spread"),
    [
        ([], Spread(0, 1, accumulation=2)),
        (["--trainer.precision", "bf16-true"], Spread(0, 1, pure=True, accumulation=2)),
        (["--trainer.devices", "2"], Spread(0, 2)),
        (["--trainer.strategy", "ddp", "--trainer.devices", "2"], Spread(0, 2)),
        (["--trainer.strategy", "zero2"], Spread(2, 1, accumulation=2)),
        (["--trainer.strategy", "zero2", "--trainer.devices", "2"], Spread(2, 2)),
        (["--trainer.strategy", "zero1", "--trainer.devices", "[0, 1]"], Spread(1, 2)),
        (["--trainer.strategy", "zero3", "--trainer.devices", "1", "--trainer.num_nodes", "2"], Spread(3, 2)),
        (["--trainer.strategy", "zero3", "--trainer.precision", "bf16-mixed", "--ranks", "2"], Spread(3, 2, bf16=True)),
        (["--trainer.strategy", "zero2_offload", "--ranks", "2"], Spread(2, 2, offload_optimizer=True)),
        (
            [*CLASS, "--trainer.strategy.stage", "3", *SMALL, *OFFLOADED, "--ranks", "2"],
            Spread(3, 2, keep_whole=0, bucket=4096, offload_optimizer=True, offload_parameters=True),
        ),
    ],
    ids=str,
)
def test_the_memory_of_a_stage_is_that_of_its_plan(
    options: list[str], spread: Spread, described: Callable[..., dict[str, Any]]
) -> None:
    config = write(micro_batch=1)
    told = described(config, *options)["stages"]
    cli = open_recipe(Arguments(prog="lit_mm describe"), [config], [])
    for stage, said, split in zip(
        cli.stages, told, (spread, replace(spread, accumulation=6 // spread.ranks)), strict=True
    ):
        cli.model.begin(stage, total_steps=1)
        assert {key: said["memory"][key] for key in ("device", "host", "largest_layer")} == figures(
            plan_memory(weights_of(cli.model), split)
        )
        assert (said["memory"]["zero"], said["memory"]["ranks"]) == (spread.zero, spread.ranks)
        assert said["memory"]["accumulation"] == split.accumulation


def test_every_rank_of_a_node_holds_the_whole_model_between_stages(
    described: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--trainer.strategy", "zero3", "--trainer.num_nodes", "2", "--ranks", "6")
    plan = described(write(), *options)
    memory = plan["stages"][0]["memory"]
    assert memory["ranks_per_node"] == 3
    assert 4 * plan["parameters"]["total"] <= memory["between_stages"] < 4.1 * plan["parameters"]["total"]
    main(["describe", "--config", "tiny.yaml", *options])
    node = 3 * memory["between_stages"] / 2**20
    assert f"each of the 3 ranks of a node holds the model whole: {node:,.2f} MiB" in capsys.readouterr().out


def test_ranks_are_those_of_the_recipe_unless_others_are_asked_for(described: Callable[..., dict[str, Any]]) -> None:
    def memory(*options: str) -> dict[str, Any]:
        return described(write(), "--trainer.strategy", "zero3", *options)["stages"][0]["memory"]

    assumed, recipe, asked = (
        memory(),
        memory("--trainer.devices", "2"),
        memory("--trainer.devices", "2", "--ranks", "1"),
    )
    assert [(m["ranks"], m["ranks_from"]) for m in (assumed, recipe, asked)] == [
        (1, "assumed"),
        (2, "recipe"),
        (1, "option"),
    ]
    assert assumed["device"] == asked["device"]
    for kind in ("masters", "gradients", "moments"):
        assert asked["device"][kind] == pytest.approx(2 * recipe["device"][kind], rel=0.01)


def test_a_batch_that_does_not_split_over_the_ranks_is_told(
    described: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert [stage["memory"]["accumulation"] for stage in described(write(), "--ranks", "3")["stages"]] == [None, 1]
    main(["describe", "--config", write(), "--ranks", "3", "--stages.pretrain.train.connector.from_step", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("stage pretrain: nothing learns in the first 2 optimizer steps")]
    (line,) = [line for line in lines if line.startswith("micro-batches")]
    assert line.split("  ")[1:] and line.endswith(" 1") and "batch does not split" in line


def test_a_precision_that_has_no_plan_is_null(
    described: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--trainer.precision", "64-true"]
    assert [stage["memory"] for stage in described(write(), *options)["stages"]] == [None, None]
    main(["describe", "--config", write(), *options])
    assert "memory: not known beforehand" in capsys.readouterr().out


@pytest.mark.parametrize(("strategy", "gradient"), [("zero1", 2), ("zero2", 4), ("zero3", 4)])
def test_a_published_7b_takes_2_4_and_8_bytes_a_parameter_and_its_gradient(
    strategy: str, gradient: int, described: Callable[..., dict[str, Any]]
) -> None:
    """Weights are bf16, with fp32 masters and two moments. Gradients are bf16 under ZeRO-1 and fp32 under ZeRO-2 and 3,
    so a parameter takes 16 and 18 bytes.

    Source: arXiv:1910.02054, section 3.1; its 16 bytes are those of ZeRO-1.
    """
    recipe = str(EXPERIMENTS / "paper" / "xcomposer2.yaml")
    finetune = described(recipe, "--trainer.strategy", strategy, "--ranks", "64")["stages"][1]
    assert finetune["frozen_total"] == 0
    held, ranks, size = finetune["memory"]["device"], finetune["memory"]["ranks"], finetune["trainable_total"]
    assert size > 8e9
    spread_out = {"zero1": ("masters", "moments"), "zero2": ("masters", "moments", "gradients")}
    spread_out["zero3"] = (*spread_out["zero2"], "weights")
    over_ranks = {kind: held[kind] * (ranks if kind in spread_out[strategy] else 1) / size for kind in held}
    expected = {"weights": 2, "masters": 4, "moments": 8, "gradients": gradient}
    for kind, bytes_each in expected.items():
        assert over_ranks[kind] == pytest.approx(bytes_each, rel=0.01), kind
    assert sum(over_ranks[kind] for kind in expected) == pytest.approx(14 + gradient, rel=0.01)


def test_engines_are_described_without_importing_them(described: Callable[..., dict[str, Any]]) -> None:
    code = "import sys; from lit_mm.cli import main; main(sys.argv[1:]); sys.exit('deepspeed' in sys.modules)"
    command = [sys.executable, "-c", code, "describe", "--config", write(), "--trainer.strategy", "zero3"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(EXPERIMENTS.parent)}, capture_output=True)
    assert done.returncode == 0


# --- images ----------------------------------------------------------------------------------------------------------
def test_images_are_laid_out_as_the_model_does_and_per_stage_where_that_differs(described: Callable) -> None:
    plan = described(write(), "--images", "56x28,28x28")
    # 2 x 1 tiles of 2 x 2 patches and a view of the whole: 4, then 2 rows of 4 and a newline each
    wide, square = plan["images"]
    assert wide == {"width": 56, "height": 28, "views": 3, "grid": [2, 1], "visual_tokens": 4 + 2 * (4 + 1)}
    assert square["grid"] == [1, 2]
    pretrain, finetune = plan["stages"]
    assert [one["visual_tokens"] for one in pretrain["images"]] == [4, 4]
    assert [one["views"] for one in pretrain["images"]] == [1, 1]
    assert "images" not in finetune


def test_a_size_that_is_refused_says_why_in_its_row(described: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--images", "56x28,1x90000000,28x28")
    first, refused, last = described(write(), *options)["stages"][0]["images"]
    assert (first["views"], last["views"]) == (1, 1)
    assert refused.keys() == {"width", "height", "refused"}
    main(["describe", "--config", write(), *options])
    text = capsys.readouterr().out
    assert ["1x90000000", "-", "-", "refused"] in [line.split() for line in text.splitlines()]
    assert "1x90000000: plan_centre_crop cannot take an image of 1 x 90000000 pixels" in text


def hd(max_tiles: int) -> dict[str, Any]:
    return {"class_path": "lit_mm.tiling.Hd", "init_args": {"max_tiles": max_tiles, "tile": 28}}


def test_sources_with_limits_of_their_own_are_told_apart(
    described: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {name: MODEL["init_args"][name] for name in ("vision", "tokenizer", "language", "rank")}
    finetune = {"tiling": hd(4), "by_source": {"docvqa": hd(9), "chartqa": hd(4)}}
    inputs = MODEL["init_args"]["inputs"] | {"tiling": hd(2)}
    arguments = parts | {"tile": 28, "inputs": inputs}
    config = write({"class_path": "lit_mm.families.XComposer2HD", "init_args": arguments})
    recipe = yaml.safe_load(Path(config).read_text())
    recipe["stages"][1] |= {"train": {"partial_lora": {"lr": 1e-3}}, "inputs": finetune}
    Path(config).write_text(yaml.safe_dump(recipe))
    plan = described(config, "--images", "90x90,200x100")
    assert "images_by_source" not in plan
    pretrain, stage = plan["stages"]
    assert not {"images", "images_by_source"} & pretrain.keys()
    assert [one["grid"] for one in plan["images"]] == [[1, 1], [2, 1]]
    assert [one["grid"] for one in stage["images"]] == [[2, 2], [2, 1]]
    assert stage["images_by_source"]["chartqa"] == stage["images"]
    docvqa = stage["images_by_source"]["docvqa"]
    assert [(one["grid"], one["views"], one["width"]) for one in docvqa] == [([3, 3], 10, 90), ([4, 2], 9, 200)]
    # 2 x 2 patches make a token: 9 + 1 views of one, a separator, 3 + 1 newlines
    assert docvqa[0]["visual_tokens"] == 10 + 1 + 4
    inputs["by_source"] = {"docvqa": hd(9)}  # which `finetune` keeps, and `pretrain` does not
    recipe["stages"][0]["inputs"] = {"by_source": {}}
    del recipe["stages"][1]["inputs"]
    recipe["model"]["init_args"] = arguments
    Path("other.yaml").write_text(yaml.safe_dump(recipe))
    other = described("other.yaml", "--images", "90x90")
    assert other["images_by_source"]["docvqa"][0]["grid"] == [3, 3]
    assert other["stages"][0]["images_by_source"] == {} and "images_by_source" not in other["stages"][1]
    main(["describe", "--config", config, "--images", "90x90"])
    said = capsys.readouterr().out
    assert "images in stage finetune, source docvqa (grids are columns x rows of tiles)" in said
    assert ["90x90", "10", "3", "x", "3", "15"] in [line.split() for line in said.splitlines()]


def test_images_after_a_change_inside_of_a_stage_are_listed_with_its_step(
    described: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = yaml.safe_load(Path(write()).read_text())
    recipe["stages"][0] |= {"inputs_from": {1: {"max_length": 64}, 2: {"tiling": hd(4)}}}
    Path("changing.yaml").write_text(yaml.safe_dump(recipe))
    pretrain, finetune = described("changing.yaml", "--images", "90x90")["stages"]
    assert [one["views"] for one in pretrain["images"]] == [1]
    assert {step: changed["images"][0]["views"] for step, changed in pretrain["images_from"].items()} == {"2": 5}
    assert finetune["images_from"] == {}
    main(["describe", "--config", "changing.yaml", "--images", "90x90"])
    assert "images in stage pretrain from step 2 (grids are columns x rows of tiles)" in capsys.readouterr().out


def test_sizes_come_from_a_file_too(described: Callable) -> None:
    Path("sizes.json").write_text("[[56, 28], [28, 28]]")
    config = write()
    assert described(config, "--images", "@sizes.json") == described(config, "--images", "56x28,28x28")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("336", "--images takes sizes as WIDTHxHEIGHT in pixels, such as 1008x672; got '336'"),
        ("336x336,0x5", "got '0x5'"),
        ("", "got ''"),
        ("@none.json", "'none.json' cannot be read (No such file or directory)"),
        ("@broken.json", "'broken.json' cannot be read (it is no JSON"),
        ("@wrong.json", r"must be a JSON list of [width, height] in pixels, got [1.5, 2]"),
        ("@flat.json", "got 3"),
    ],
)
def test_sizes_that_are_none_are_refused(text: str, said: str, here: Path) -> None:
    for name, content in (("broken", "[["), ("wrong", "[[1, 2], [1.5, 2]]"), ("flat", "3")):
        (here / f"{name}.json").write_text(content)
    with pytest.raises(UserError) as refused:
        read_sizes(text)
    assert said in str(refused.value)


# --- for people ------------------------------------------------------------------------------------------------------
def test_the_table_names_parts_stages_and_images(capsys: pytest.CaptureFixture[str]) -> None:
    main(["describe", "--config", write(), "--images", "56x28"])
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split("  ")[0].strip(): line.split() for line in reversed(lines)}
    assert cells["part"] == ["part", "parameters", "pretrain", "finetune"]
    assert cells["connector"][2:] == ["trained", "from", "step", "7"]
    assert cells["vision"][2:] == ["frozen", "frozen"]
    assert cells["length"] == ["length", "3", "steps", "2", "epochs"]
    assert cells["batch"] == ["batch", "2", "samples", "6", "samples"]
    (heading,) = [line for line in lines if line.startswith("memory under auto on 1 rank ")]
    assert "--ranks N plans for N" in heading and "Activations come on top" in heading
    assert cells["MiB per rank"][3:] == ["pretrain", "finetune"]
    held = [[float(cell) for cell in cells[kind][1:]] for kind in ("weights", "gradients", "moments")]
    sums = [
        float(cell) for line in lines[lines.index(heading) :] if line.startswith("total") for cell in line.split()[1:]
    ]
    assert sums == pytest.approx([sum(column) for column in zip(*held, strict=True)], abs=0.02)
    assert [line.split() for line in lines if line.startswith("56x28")] == [
        ["56x28", "3", "2", "x", "1", "14"],
        ["56x28", "1", "1", "x", "1", "4"],
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: --config"),
        (["--config", "none.yaml"], "none.yaml"),
        (["--config", "tiny.yaml", "--imags", "3x3"], "no option --imags. Did you mean --images?"),
        (["--config", "tiny.yaml", "--model.init_args.image_sze", "3"], "image_sze"),
        (["--config", "tiny.yaml", "--stages", "other"], "--stages names ['other']"),
        (["--config", "tiny.yaml", "--images", "3"], "WIDTHxHEIGHT"),
        (["--config", "tiny.yaml", "--ranks", "0"], "--ranks counts processes from 1, got 0"),
        (["--config", "tiny.yaml", "--trainer.devices", "some"], "trainer.devices takes a number of devices"),
        (["--config", "tiny.yaml", "--trainer.num_nodes", "0"], "trainer.num_nodes counts nodes from 1, got 0"),
        (["--config", "tiny.yaml", "--trainer.strategy", "fsdp"], "trainer.strategy is fsdp; expected one of"),
        (
            ["--config", "tiny.yaml", "--trainer.strategy", "zero2", "--trainer.precision", "16-mixed"],
            "scales the loss",
        ),
        (["--config", "text.yaml", "--images", "3x3"], "reads no images"),
    ],
)
def test_a_mistake_exits_with_2_and_is_told_in_three_lines(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    language = {name: LLAVA["init_args"][name] for name in ("language", "tokenizer")}
    stages = [{"name": "read", "train": {"language": {"lr": 1e-3}}, "max_steps": 1}]
    text = write({"class_path": "lit_mm.families.Decoder", "init_args": language})
    Path("text.yaml").write_text(yaml.safe_dump(yaml.safe_load(Path(text).read_text()) | {"stages": stages}))
    write()
    with pytest.raises(SystemExit) as left:
        main(["describe", *arguments])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) <= 3


# --- costs -----------------------------------------------------------------------------------------------------------
def test_checkpointing_keeps_less_and_computes_again(described: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    key = "--model.init_args.language.init_args.activation_checkpointing"
    plain, full = (described(write(), key, mode)["stages"][1]["costs"] for mode in ("none", "full"))
    assert [costs["activations"]["checkpointing"]["language"] for costs in (plain, full)] == ["none", "full"]
    kept, kept_again = (costs["activations"]["parts"] for costs in (plain, full))
    assert kept_again["language"] < kept["language"] / 3
    assert kept["vision"] == 0  # it is frozen
    (sample,), (again,) = plain["samples"], full["samples"]
    assert (sample["recompute"], again["recompute"] > 0, again["total"]) == (0, True, sample["total"])
    main(["describe", "--config", write(), key, "full"])
    text = capsys.readouterr().out
    assert "language (full checkpointing)" in text and "recompute" in text


def test_operations_are_listed_for_every_size_that_is_not_refused(described: Callable) -> None:
    stage, _ = described(write(), "--images", "56x28,1x90000000,28x28", "--text", "10")["stages"]
    samples = stage["costs"]["samples"]
    assert [(one["width"], one["height"], one["text"]) for one in samples] == [(56, 28, 10), (28, 28, 10)]
    for one in samples:
        assert (
            one["total"]
            == one["forward"] + one["backward"]
            == sum(part["forward"] + part["backward"] for part in one["parts"].values())
        )
    tiled, square = (
        described(write(), "--images", size)["stages"][1]["costs"]["samples"][0] for size in ("56x28", "28x28")
    )
    assert tiled["parts"]["vision"]["forward"] == square["parts"]["vision"]["forward"] > 0  # 3 views each


def test_memory_says_how_many_rows_fit(described: Callable) -> None:
    plan = described(write(), "--memory", "0.01")["stages"][1]
    activations, total = plan["costs"]["activations"], plan["memory"]["device"]["total"]
    most, row = activations["largest_micro_batch"], activations["per_row"]
    fixed = activations["total"] - row * activations["micro_batch"]
    assert total + fixed + most * row <= 0.01 * 2**30 < total + fixed + (most + 1) * row
    assert most > 0
    assert described(write(), "--memory", "0.0001")["stages"][1]["costs"]["activations"]["largest_micro_batch"] == 0


def test_time_and_money_follow_from_the_operations(described: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--device", "100", "--utilisation", "0.5", "--price", "2", "--ranks", "2"]
    pretrain, finetune = described(write(), *options)["stages"]
    whole = pretrain["costs"]["whole"]
    assert whole["operations"] == 3 * whole["operations_per_step"] == 3 * 2 * pretrain["costs"]["samples"][0]["total"]
    assert whole["seconds"] == pytest.approx(whole["operations"] / (2 * 100e12 * 0.5))
    assert whole["price"] == pytest.approx(whole["seconds"] / 3600 * 2 * 2)
    assert finetune["costs"]["whole"]["operations"] is None  # it counts epochs, and the data are not read
    main(["describe", "--config", write(), *options])
    text = capsys.readouterr().out
    assert "time at 50% of 100 TFLOP/s" in text and "unknown" in text


def test_the_data_say_steps_samples_tokens_and_views(described: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain, finetune = (stage["costs"]["data"] for stage in described(write(), "--data")["stages"])
    assert (pretrain["steps"], pretrain["samples"], pretrain["samples_in_epoch"]) == (3, 6, 8)
    assert pretrain["tokens"] > pretrain["supervised"] + 4 * pretrain["views"] > pretrain["views"] >= 6
    assert (pretrain["counted_rows"], pretrain["estimated"]) == (6, [])  # all rows were laid out
    assert (finetune["steps"], finetune["samples"], finetune["indexed"]) == (3, 18, False)  # 2 epochs of 8 in sixes
    assert finetune["estimated"] == ["steps"]
    main(["describe", "--config", "tiny.yaml", "--data", "--stages", "finetune"])
    text = capsys.readouterr().out
    assert "finetune: figures with ~ are estimated from" in text and "data index" not in text  # nothing is in files
    assert ["steps", "~3"] in [line.split() for line in text.splitlines()]


def test_with_an_index_of_lengths_every_figure_of_a_stage_is_that_of_its_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LIT_MM_CACHE", "cache")
    monkeypatch.setattr("lit_mm.commands.costs.LAID_OUT", 4)
    texts = [{"from": "gpt", "value": "a red circle near the page " * (1 + number % 5)} for number in range(30)]
    turns = [[{"from": "human", "value": "what is this?"}, text] for text in texts]
    entries = [{"id": str(number), "conversations": turn} for number, turn in enumerate(turns)]
    Path("chats.json").write_text(json.dumps(entries))
    recipe = yaml.safe_load(Path(write()).read_text())
    source = {
        "class_path": "lit_mm.documents.sources.LlavaConversations",
        "init_args": {"path": "chats.json", "images": "."},
    }
    members = {"sources": [{"source": source}], "global_batch": 4, "micro_batch": 2, "row_tokens": 192}
    recipe["data"] = {"class_path": "lit_mm.datamodules.mixture.Mixture", "init_args": members}
    Path("chats.yaml").write_text(yaml.safe_dump(recipe))
    cli = open_recipe(Arguments(prog="lit_mm describe"), ["chats.yaml"], [])
    stage = replace(cli.stages[0], max_steps=None, epochs=2)
    data, processor = cli.data_of(stage), cli.model.processor_of(stage)
    estimates, _ = rows_of_data(cli, stage, 1)
    assert estimates["estimated"] == ["steps", "samples", "tokens", "supervised", "views"]
    (line,) = cost_tables.estimate_lines([{"name": "one", "costs": {"data": estimates}}])
    assert line.startswith(
        "one: figures with ~ are estimated from 4 rows; `python -m lit_mm data index --config RECIPE`"
    )
    lengths.build(data.maker(processor), 0)
    counts, _ = rows_of_data(cli, stage, 1)
    assert (
        counts["estimated"] == []
        and list(cost_tables.estimate_lines([{"name": "one", "costs": {"data": counts}}])) == []
    )
    steps = data.begin(processor, stage, seed=cli.seed)
    samples = [length for micro in data.stream for row in micro.lengths for length in row]
    assert (counts["steps"], counts["samples"], counts["counted_rows"]) == (steps, len(samples), 4 * steps)
    for figure in ("tokens", "views", "supervised"):
        assert counts[figure] == sum(getattr(length, figure) for length in samples), figure
    monkeypatch.setattr("lit_mm.commands.costs.COUNTED", 4)  # a stage that is too long to be counted
    again, _ = rows_of_data(cli, stage, 1)
    assert (again["steps"], again["counted_rows"], again["estimated"][0]) == (steps, 4, "samples")


def test_another_recipe_stands_beside_this_one(described: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    this = write()
    Path("deeper.yaml").write_text(Path(this).read_text().replace("layers: 1", "layers: 2"))
    plans = described(this, "--against", "deeper.yaml")
    assert plans["this"] == described(this) and plans["against"] == described("deeper.yaml")
    main(["describe", "--config", this, "--against", "deeper.yaml"])
    rows = {line.split("   ")[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    total, more = (plans[name]["parameters"]["total"] for name in ("this", "against"))
    assert rows["parameters"][1:] == [f"{total:,}", f"{more:,}", f"{more / total:.2f}"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--text", "-1"], "--text counts the text tokens of a sample, got -1"),
        (["--utilisation", "1.5"], "--utilisation is a share of the peak"),
        (["--price", "2"], "--price is a number from 0, the price of an hour of a --device"),
        (["--device", "H100", "--price", "nan"], "--price is a number from 0"),
        (["--memory", "0"], "--memory is a number above 0 GiB, got 0"),
        (["--memory", "nan"], "--memory is a number above 0 GiB, got nan"),
        (["--device", "H1"], "--device takes one of T4"),
    ],
)
def test_assumptions_that_make_no_sense_are_refused(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["describe", "--config", write(), *options])
    assert said in capsys.readouterr().err
