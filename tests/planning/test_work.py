"""Operations and kept bytes that are planned are those that torch counts when the model runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lit_mm.commands.recipe import RecipeCLI, quiet
from lit_mm.layers import activations
from lit_mm.layers.activations import Checkpointing, kept_operations, prepare_layers
from lit_mm.layers.attention import Segments
from lit_mm.layers.attention.varlen import varlen_attention
from lit_mm.module import MultimodalModule
from lit_mm.planning.counting import FP32, Kernels, Precision, Trace, factored
from lit_mm.planning.row import Row
from lit_mm.planning.work import Checkpointed, Operations, PartwiseWork, WholeWork, in_all, meta_copy, work_of
from lit_mm.samples.batch import PAIRS, TOKENS, Batch
from lit_mm.samples.collate import collate
from lit_mm.samples.processor import Processor, Sample
from lit_mm.stages.stage import Stage, Train, adapters_of
from tests.options.probes import Operations as Names
from tests.tiny import document, xcomposer2
from tests.tiny_blip import blip

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
# `modern` has published sizes; the data of `demo` and `own_data` are not in the repository
NANO = sorted(path for path in EXPERIMENTS.glob("*.yaml") if path.stem not in ("demo", "modern", "own_data"))
ON_A_CPU = Precision(repeats_keys=True)
QUICK = ("blip", "cogagent", "fuyu", "llava_uhd", "xcomposer2")  # pairs, memory and experts, no encoder, any size, LoRA


def batch_of(samples: list[Sample], processor: Processor) -> Batch:
    """Build a batch of samples with random pixels."""
    views = []
    for sample in samples:
        sizes = [view.size for plan in sample.plans for view in plan.views]
        sizes += [view.size for plan in sample.plans for view in plan.second]
        views.append([torch.rand(3, *size) for size in sizes])
    return collate(samples, processor, views=views, units={TOKENS: 9, PAIRS: len(samples)})


def saved_tensors(module: MultimodalModule, batch: Batch) -> int:
    """Run the current stage's objectives forward and backward; return the bytes of saved tensors."""
    saved = Saved(module)
    with saved:
        loss = sum(objective(module.network, batch) for objective in objectives_of(module))
    size = saved.size
    loss.backward()
    module.zero_grad(set_to_none=True)
    return size


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of tensors that are saved inside a `with` block, parameters left out."""

    def __init__(self, module: MultimodalModule) -> None:
        super().__init__(self.note, lambda tensor: tensor)
        self.parameters = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
        self.tensors: dict[int, Tensor] = {}

    def note(self, tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in self.parameters:
            self.tensors[tensor.untyped_storage()._cdata] = tensor
        return tensor

    @property
    def size(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors.values())


def counted(module: MultimodalModule, batch: Batch) -> tuple[Operations, int]:
    """Run the current stage's objectives; return operations by torch's counter and the bytes of saved tensors."""
    saved = Saved(module)
    with FlopCounterMode(display=False) as counter:
        with saved:
            loss = sum(objective(module.network, batch) for objective in objectives_of(module))
        forward, size = counter.get_total_flops(), saved.size
        loss.backward()
    module.zero_grad(set_to_none=True)
    return Operations(forward, counter.get_total_flops() - forward), size


def planned(module: MultimodalModule, row: Row, precision: Precision = FP32) -> tuple[Operations, float]:
    objectives = [module.objectives[name] for name in module.weights_of_objectives(module.current_stage)]
    work = work_of(meta_copy(module.network), objectives, precision)
    return in_all(work.operations(row)), sum(work.saved(row).values())


def samples_of_one_shape(make: Callable[[int], Sample], count: int) -> list[Sample]:
    """Return the first samples whose views have one shape, because a batch of several shapes is padded."""
    samples: list[Sample] = []
    number, shape = 0, None
    while len(samples) < count:
        sample = make(number)
        shapes = {view.size for plan in sample.plans for view in plan.views}
        if len(shapes) == 1 and shape in (None, *shapes):
            samples.append(sample)
            (shape,) = shapes
        number += 1
    return samples


def compare(path: Path, names: tuple[str, ...] | None = None) -> None:
    """Compare plan and count of stages of a nano recipe; None: of its last stage and no other."""
    quiet()
    cli = RecipeCLI(["--config", str(path), "--trainer.accelerator", "cpu"], "describe")
    module, adapters = cli.model, adapters_of(cli.stages)
    for stage in cli.stages if names is None else [stage for stage in cli.stages if stage.name in names]:
        module.set_adapters(adapters[stage.name])
        module.begin(stage, total_steps=1)
        processor, maker = module.processor_of(stage), cli.data_of(stage).maker(module.processor_of(stage))
        with module.reading_only(stage):
            pairs = 1 if isinstance(work_of(module.network, list(objectives_of(module))), PartwiseWork) else 3
            samples = samples_of_one_shape(lambda number, maker=maker: maker(number)[0], pairs)
            batch = batch_of(samples, processor)
            row = Row.of_batch(batch)
            assert row == Row.of_samples(samples, processor)
            (plan, kept), (count, saved) = planned(module, row, ON_A_CPU), counted(module, batch)
        assert plan.forward == pytest.approx(count.forward, rel=0.01), stage.name
        assert plan.backward + plan.recompute == pytest.approx(count.backward, rel=0.01), stage.name
        assert kept == pytest.approx(saved, rel=0.1), stage.name


def objectives_of(module: MultimodalModule) -> list:
    return [module.objectives[name] for name in module.weights_of_objectives(module.current_stage)]


def last_stage(path: Path) -> tuple[str, ...]:
    import yaml

    return (yaml.safe_load(path.read_text())["stages"][-1]["name"],)


@pytest.mark.parametrize("name", QUICK)
def test_the_last_stage_of_a_nano_recipe_costs_what_torch_counts(name: str) -> None:
    path = EXPERIMENTS / f"{name}.yaml"
    compare(path, last_stage(path))


@pytest.mark.slow
@pytest.mark.parametrize("path", NANO, ids=lambda path: path.stem)
def test_every_stage_of_every_nano_recipe_costs_what_torch_counts(path: Path) -> None:
    compare(path)


# --- parts of a small model -------------------------------------------------------------------------------------------
def tiny(*parts: str, checkpointing: Checkpointing = "none", compiled: bool = False) -> MultimodalModule:
    """A small model in a stage in which these parts learn."""
    module = xcomposer2()
    for part in (module.network.vision, module.network.language):
        part.activation_checkpointing = checkpointing
        prepare_layers(part, checkpointing, compiled)
    module.begin(Stage("s", {part: Train(lr=1e-3) for part in parts}), total_steps=1)
    return module


def tiny_samples(module: MultimodalModule, numbers: tuple[int, ...] = (0, 1, 2, 4)) -> list[Sample]:
    return [module.processor.sample(document(number)) for number in numbers]


EVERYTHING = ("vision", "connector", "partial_lora", "language")


@pytest.mark.parametrize(
    "parts", [EVERYTHING, ("connector",), ("partial_lora",), ("vision",)], ids=lambda parts: "+".join(parts)
)
def test_gradients_cost_what_learns_and_what_stands_behind_it(parts: tuple[str, ...]) -> None:
    module = tiny(*parts)
    batch = batch_of(tiny_samples(module), module.processor)
    plan, _ = planned(module, Row.of_batch(batch), ON_A_CPU)
    count, _ = counted(module, batch)
    assert (plan.forward, plan.backward, plan.recompute) == (count.forward, count.backward, 0)


def test_layers_that_are_computed_again_are_counted_apart() -> None:
    plain, full = tiny(*EVERYTHING), tiny(*EVERYTHING, checkpointing="full")
    batch = batch_of(tiny_samples(full), full.processor)
    row = Row.of_batch(batch)
    (without, kept), (again, kept_again) = planned(plain, row, ON_A_CPU), planned(full, row, ON_A_CPU)
    assert (again.forward, again.backward, again.total) == (without.forward, without.backward, without.total)
    count, saved = counted(full, batch)
    assert again.backward + again.recompute == count.backward
    assert kept_again == pytest.approx(saved, rel=0.1)
    assert kept_again < kept / 3


def test_selective_checkpointing_keeps_products_and_computes_none_again() -> None:
    kinds: tuple[Checkpointing, ...] = ("full", "selective", "none")
    row = Row.of_batch(batch_of(tiny_samples(tiny(*EVERYTHING)), tiny(*EVERYTHING).processor))
    plans = [planned(tiny(*EVERYTHING, checkpointing=kind, compiled=True), row) for kind in kinds]
    assert plans[0][1] < plans[1][1] < plans[2][1]
    assert [plan.recompute > 0 for plan, _ in plans] == [True, False, False]


def test_a_trace_keeps_inputs_and_products_from_which_the_rest_is_computed_again() -> None:
    x, weight, bias = (torch.randn(4, 4, requires_grad=True) for _ in range(3))
    with Trace([torch.ops.aten.mm.default]) as trace:
        first = (x * 2).cos() @ weight  # its backward pass needs the cosine, which is computed again from x
        second = first.tanh().view(2, 8).exp() @ bias.view(8, 2)  # needs first alone
        third = second + torch.ones(2, 2)  # needs nothing
    kept = {tensor.untyped_storage()._cdata: tensor for tensor in trace.saved_tensors()}
    expected = [x, first, weight, bias]
    assert kept.keys() == {tensor.untyped_storage()._cdata for tensor in expected}
    third.sum().backward()  # nothing was changed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_selective_checkpointing_keeps_the_attention_of_a_gpu(dtype: torch.dtype) -> None:
    pytest.importorskip("torch.nn.attention.varlen", reason="this torch has no varlen attention")
    q, k, v = (torch.empty(1, 2, 12, 8, device="meta", dtype=dtype) for _ in range(3))
    with Names() as operations:
        varlen_attention(q, k, v, Segments([5, 7], device=torch.device("meta")))
    assert {str(operation) for operation in kept_operations()} & set(operations.names)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "llava_next", "llava_uhd", "mini_gemini", "monkey", "xcomposer2"])
def test_selective_checkpointing_keeps_what_compiled_layers_keep(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved tensors of compiled layers are counted; the partition of their graphs is the one of every backend."""
    monkeypatch.setattr(activations, "BACKEND", "aot_eager")
    quiet()
    cli = RecipeCLI(["--config", str(EXPERIMENTS / f"{name}.yaml"), "--trainer.accelerator", "cpu"], "describe")
    module, stage = cli.model, cli.stages[-1]
    module.set_adapters(adapters_of(cli.stages)[stage.name])
    module.begin(stage, total_steps=1)
    for part in (part for part in module.network.modules() if isinstance(part, Checkpointed)):
        part.activation_checkpointing = "selective"
        prepare_layers(part, "selective", True)
    maker = cli.data_of(stage).maker(module.processor_of(stage))
    with module.reading_only(stage):
        batch = batch_of(samples_of_one_shape(lambda number: maker(number)[0], 3), maker.processor)
        _, kept = planned(module, Row.of_batch(batch), ON_A_CPU)
        saved = saved_tensors(module, batch)
    activations.compile_forward.cache_clear()
    activations.selecting.cache_clear()
    torch._dynamo.reset()
    assert kept == pytest.approx(saved, rel=0.1)


def test_the_loss_in_chunks_computes_the_head_again_and_keeps_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny(*EVERYTHING)
    batch = batch_of(tiny_samples(module), module.processor)
    row = Row.of_batch(batch)
    _, whole = planned(module, row, ON_A_CPU)
    monkeypatch.setattr("lit_mm.objectives.token_losses.WHOLE", 4 * 512 * 4)
    monkeypatch.setattr("lit_mm.objectives.token_losses.CHUNK", 4 * 512 * 4)
    plan, kept = planned(module, row, ON_A_CPU)
    count, saved = counted(module, batch)
    assert plan.backward + plan.recompute == count.backward and plan.recompute > 0
    assert kept == pytest.approx(saved, rel=0.1) and kept < whole


def test_bf16_halves_what_products_keep() -> None:
    module = tiny(*EVERYTHING)
    row = Row.of_batch(batch_of(tiny_samples(module), module.processor)).times(50)
    works = [
        work_of(meta_copy(module.network), objectives_of(module), Precision(kind)) for kind in (None, torch.bfloat16)
    ]
    wide, narrow = (work.saved(row)["vision"] for work in works)
    assert 0.5 < narrow / wide < 0.7  # norms and the residual stream stay in fp32
    with torch.autocast("cpu", torch.bfloat16):
        batch = batch_of(tiny_samples(module), module.processor)
        _, saved = counted(module, batch)
    assert planned(module, Row.of_batch(batch), Precision(torch.bfloat16))[1] == pytest.approx(saved, rel=0.1)


def test_the_cost_of_a_row_is_that_of_its_samples_and_attention_grows_with_the_square() -> None:
    module = tiny(*EVERYTHING)
    work = work_of(meta_copy(module.network), objectives_of(module))
    row = Row((30, 50), 8, routed=4, views={(28, 28): 1})
    apart = [Row((30,), 8, routed=4, views={(28, 28): 1}), Row((50,), 0)]
    assert in_all(work.operations(row)) == in_all(work.operations(apart[0])) + in_all(work.operations(apart[1]))
    long, short = (in_all(work.operations(Row((length,), 0))).causal for length in (200, 100))
    assert long == 4 * short == 3.5 * 2 * 4 * 200**2 * 32  # 2 layers of width 32; backward 2.5 times forward


@pytest.mark.parametrize(
    "recipe", [pytest.param("llava_1_5", marks=pytest.mark.slow), pytest.param("cogvlm", marks=pytest.mark.slow)]
)
def test_at_published_size_the_plan_is_torchs_count_on_the_meta_device(recipe: str) -> None:
    quiet()
    with torch.device("meta"):
        cli = RecipeCLI(["--config", str(EXPERIMENTS / "paper" / f"{recipe}.yaml")], "describe")
    module, stage = cli.model, cli.stages[-1]
    module.set_adapters(adapters_of(cli.stages)[stage.name])
    module.begin(stage, total_steps=1)
    sizes = module.processor_of(stage)
    row = Row.of_image(sizes, 480, 640, 100)
    with torch.device("meta"):
        length, visual = row.lengths[0], row.routed
        places = torch.arange(length)
        from lit_mm.samples.batch import Views

        pixels = tuple(torch.empty(count, 3, *shape) for shape, count in row.views.items())
        views = Views(pixels, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), tokens=0)
        counts = [module.network.connector(module.network.vision(group)).shape[:2].numel() for group in pixels]
        views = Views(views.groups, views.owners, views.tiles, tokens=sum(counts))
        batch = Batch(
            ids=places[None],
            lengths=row.lengths,
            positions=places[None],
            visual=places[:visual],
            bank=places[:visual],
            supervised=places[: row.supervised],
            labels=places[: row.supervised],
            sample_ids=("a",),
            views=views,
        )
    work = work_of(module.network, objectives_of(module))
    plan = in_all(work.operations(row))
    with FlopCounterMode(display=False) as counter, Kernels(FP32):
        loss = sum(objective(module.network, batch) for objective in objectives_of(module))
        forward = counter.get_total_flops()
        loss.backward()
    assert plan.forward == pytest.approx(forward, rel=0.01)
    assert plan.backward + plan.recompute == pytest.approx(counter.get_total_flops() - forward, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "size", "tokens", "published"),
    [("llava_1_5", (336, 336), 576, 15.50), ("llava_uhd_arxiv", (672, 1008), 448, 14.63)],
)
def test_reading_an_image_costs_what_llava_uhd_publishes(
    recipe: str, size: tuple[int, int], tokens: int, published: float
) -> None:
    """The published figures have the head at every position and the last block of the vision encoder.

    Source: arXiv:2403.11703v1, table 2: TFLOP of LLaVA-1.5-13B and of LLaVA-UHD.
    """
    quiet()
    sizes = {"width": 5120, "layers": 40, "heads": 40, "kv_heads": 40, "ffn_width": 13824}
    options = [f"--model.init_args.language.init_args.{key}={value}" for key, value in sizes.items()]
    with torch.device("meta"):
        cli = RecipeCLI(["--config", str(EXPERIMENTS / "paper" / f"{recipe}.yaml"), *options], "describe")
    module, stage = cli.model, cli.stages[-1]
    module.begin(stage, total_steps=1)
    row = Row.of_image(module.processor_of(stage), *size, text=0)
    assert row.lengths == (tokens,)
    forward = in_all(work_of(module.network, objectives_of(module)).operations(row)).forward
    assert (forward + 2 * tokens * 5120 * 32000) / 1e12 == pytest.approx(published, rel=0.01)


def test_a_length_that_is_not_probed_follows_from_three_that_are() -> None:
    module = blip()
    module.begin(Stage("s", {"vision": Train(lr=1e-3)}), total_steps=1)
    work, exact = (WholeWork(meta_copy(module.network), objectives_of(module)) for _ in range(2))
    rows = [Row((length, 4), 9, views={(32, 32): 2}) for length in (6, 9, 20, 14)]
    *_, last = [in_all(work.operations(row)) for row in rows]
    expected = in_all(exact.operations(rows[-1]))
    assert last.total == pytest.approx(expected.total, rel=1e-9)
    assert work.saved(rows[-1])["all"] == pytest.approx(exact.saved(rows[-1])["all"], rel=1e-9)


# --- small functions --------------------------------------------------------------------------------------------------
def test_copies_of_samples_have_the_sums_of_samples_in_a_row_at_any_count() -> None:
    sizes = {"targets": (2, 3), "views": {(8, 8): 2}, "second_views": {(9, 9): 2}, "second_counts": (1, 1)}
    row = Row((5, 7), 4, routed=6, **sizes)
    twice = {name: size * 2 if isinstance(size, tuple) else {s: 4 for s in size} for name, size in sizes.items()}
    apart, copies = Row((5, 7, 5, 7), 8, routed=12, **twice), row.times(2)
    assert copies.moments((3, 4)) == apart.moments((3, 4, 3, 4))
    assert (copies.samples, copies.views, copies.second_views) == (4, apart.views, apart.second_views)
    assert row.times(10**15).moments()["l", "l"] == 10**15 * (25 + 49)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(98, (("l", "l"), 2)), (7 * 11 * 3, (("l", "s"), 3)), (13, ((), 13)), (121, (("s", "s"), 1))],
)
def test_a_cost_is_factored_over_the_sizes_of_the_probe(value: int, expected: tuple[tuple[str, ...], int]) -> None:
    assert factored(value, {"l": 7, "s": 11}) == expected


def test_a_copy_on_the_meta_device_has_no_memory_and_the_same_trainable_parameters() -> None:
    module = tiny("connector")
    copy = meta_copy(module.network)
    assert {tensor.device.type for tensor in [*copy.parameters(), *copy.buffers()]} == {"meta"}
    learning = [name for name, parameter in copy.named_parameters() if parameter.requires_grad]
    assert learning == [name for name, parameter in module.network.named_parameters() if parameter.requires_grad]
    assert {tensor.device.type for tensor in module.network.parameters()} == {"cpu"}
