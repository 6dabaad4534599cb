"""Cases of the settings of a recipe: stages, parts that learn, adapters, inputs, augmentations and second texts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lit_mm.prompts.qwen_vl import QwenPlain
from lit_mm.samples.augmentation import Augmentation
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.layout import BetweenFlags
from lit_mm.samples.reading import Reading
from lit_mm.stages.adapter import Adapter
from lit_mm.stages.examine import Examine
from lit_mm.stages.schedule import Linear
from lit_mm.stages.stage import Stage, Start, Train, adapters_of
from lit_mm.tiling import Pad, Stretch
from tests.options.case import Case, With
from tests.options.probes import PAGES, Behaviour, numbers
from tests.tiny import Documents, document, xcomposer2


def of_stage(stage: Stage) -> Behaviour:
    """Optimizer groups with their rates over the steps, modes of parts, weights of losses, and the stage's rows."""
    torch.manual_seed(0)
    module = xcomposer2(dropout=0.1)
    module.check_recipe([stage])
    module.set_adapters(adapters_of([stage])[stage.name], seed=0)
    data = Documents(8)
    steps = data.begin(module.processor_of(stage), stage, seed=0)
    module.begin(stage, total_steps=steps)
    configured = module.configure_optimizers()
    optimizer, rates = configured["optimizer"], configured["lr_scheduler"]["scheduler"].lr_lambdas
    groups = []
    for group, factor in zip(optimizer.param_groups, rates, strict=True):
        settings = {key: repr(value) for key, value in group.items() if key != "params"}
        shapes = [tuple(parameter.shape) for parameter in group["params"]]
        groups.append((settings, shapes, [round(factor(step), 9) for step in range(steps)]))
    with torch.no_grad():
        for name, parameter in module.network.vision.named_parameters():
            if "lora_B" in name or "lora_b" in name:
                parameter.fill_(0.1)
    module.train()
    modes = [name for name, each in module.named_modules() if each.training]
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    features = numbers(module.network.vision(pixels))
    rows = [micro.rows for micro in data.stream]
    return steps, groups, modes, module.weights_of_objectives(stage), features, rows, of_inputs(stage.inputs)


def of_train(train: Train) -> Behaviour:
    """What a stage does that trains the vision encoder by these settings."""
    return of_stage(Stage("a", {"vision": train}, max_steps=4))


def of_adapter(adapter: Adapter) -> Behaviour:
    """What a stage does that trains this adapter of the vision encoder."""
    return of_train(Train(1e-2, adapter=adapter))


def of_inputs(inputs: Inputs | None) -> Behaviour:
    """Samples of documents: ids, labels, plans, pixels with a fixed draw of the augmentation, and second texts."""
    processor = xcomposer2().processor.with_inputs(inputs)
    samples = []
    for number in range(6):
        each = replace(document(number), source="charts" if number % 2 else "")
        sample = processor.sample(each)
        pixels = [numbers(crop.float()) for crop in processor.crops(sample, draw=7)]
        reading = [] if processor.reading is None else processor.reading(each).tolist()
        samples.append((sample.input_ids.tolist(), sample.labels.tolist(), sample.index.tolist(), pixels, reading))
    return tuple(samples)


def of_augmentation(augmentation: Augmentation) -> Behaviour:
    """Samples whose pictures are changed."""
    return of_inputs(Inputs(augmentation=augmentation))


def of_reading(reading: Reading) -> Behaviour:
    """Second texts of documents."""
    texts: list[Any] = []
    for page in PAGES:
        try:
            texts.append(reading(page).tolist())
        except ValueError as error:
            texts.append(str(error))
    return tuple(texts)


PROMPT = QwenPlain(image_start="", image_end="")
VISION = {"train": {"vision": Train(1e-2)}, "max_steps": 4}
BRANCHES = "tests/run/test_branches.py::"
FIGURES = "tests/commands/test_examined.py::test_every_step_of_the_stage_has_every_figure"
SETTINGS = {
    Stage: Case(
        of_stage,
        {"name": "a"} | VISION,
        {
            "name": "b",  # it seeds the order of the samples
            "train": {"connector": Train(1e-2)},
            "max_steps": 5,
            "epochs": With(2, {"max_steps": None}),
            "schedule": Linear(0.5),
            "betas": (0.8, 0.9),
            "noisy": ["partial_lora"],
            "objectives": {"next_token": 2.0},
            "inputs": Inputs(prompt=PROMPT),
        },
        {
            "clip": "tests/stages/test_stage.py::test_the_gradient_norm_is_limited_over_all_trainable_parts",
            "data": "tests/test_cli.py::test_a_stage_changes_only_the_data_arguments_it_names",
            "starts_from": BRANCHES + "test_where_stages_start_and_which_ends_last",
            "inputs_from": "tests/run/test_inputs_from.py::test_the_change_is_seen_from_its_step_on",
            "examine": FIGURES,
        },
    ),
    Train: Case(
        of_train,
        {"lr": 1e-2},
        {
            "lr": 1e-3,
            "weight_decay": 0.2,
            "layer_decay": 0.5,
            "from_step": 2,
            "optimizer": "muon",
            "decay_vectors": True,
            "adapter": Adapter(rank=2),
            "average": 0.9,
        },
        {"optional": "tests/stages/test_stage.py::test_optional_settings_of_a_missing_part_are_left_out"},
    ),
    Adapter: Case(
        of_adapter,
        {"rank": 2},
        {"type": "dora", "rank": 4, "alpha": 8.0, "dropout": 0.5, "targets": ["qkv"]},
        {"after": "tests/run/test_adapters.py::test_a_run_that_is_cut_off_anywhere_ends_as_the_unbroken_one"},
    ),
    Start: Case(
        repr,
        {},
        {},
        {
            "stage": BRANCHES + "test_where_stages_start_and_which_ends_last",
            "averaged": "tests/stages/test_average.py::"
            "test_the_next_stage_starts_from_averages_that_are_saved_beside_the_weights",
        },
    ),
    Examine: Case(
        repr,
        {},
        {},
        dict.fromkeys(("metrics", "sources", "benchmarks", "data"), FIGURES)
        | {
            "questions": "tests/commands/test_examined.py::test_a_rehearsal_asks_few_questions",
            "best": "tests/commands/test_examined.py::test_the_checkpoint_with_the_lowest_loss_stays",
        },
    ),
    Inputs: Case(
        of_inputs,
        {},
        {
            "tiling": Stretch(56),
            "layout": BetweenFlags(),
            "prompt": PROMPT,
            "max_length": 60,
            "fill": With((0, 0, 0), {"tiling": Pad(28)}),
            "by_source": {"charts": Pad(28)},
            "augmentation": Augmentation(flip=1.0),
            "reading": Reading("nano"),
        },
        {
            "image_ids": "tests/samples/test_collate.py::test_samples_of_one_picture_have_one_number_whatever_its_file",
            "whole_jpegs": "tests/documents/test_decode.py::test_a_key_of_the_inputs_decodes_large_jpegs_whole",
        },
    ),
    Augmentation: Case(
        of_augmentation,
        {"scale": (0.3, 0.9), "operations": 6, "probability": 0.9},
        {
            "scale": (0.1, 0.2),
            "ratio": (1.9, 2.0),
            "flip": 1.0,
            "operations": 2,
            "magnitude": 9.0,
            "probability": 0.1,
            "shift": 3.0,
        },
    ),
    Reading: Case(
        of_reading,
        {"tokenizer": "nano", "max_length": 8},
        {
            "tokenizer": "none/such",  # refused
            "text": "instruction",
            "first_id": 7,
            "last_id": 8,
            "max_length": 5,
            "cut": "left",
            "clean": True,
        },
    ),
}
