"""LLaVA-UHD: views of any shape in one call, layout, stages, trainable parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_mm.connectors.downsample import DownsampleMLP
from lit_mm.connectors.mlp import MLPProjector
from lit_mm.connectors.slice_resampler import SliceResampler
from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.families import LlavaUHD
from lit_mm.prompts.plain import Plain
from lit_mm.samples.collate import collate
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.layout import InOrder, SlicesThenOverview
from lit_mm.stages.stage import Stage, Train, apply_stage
from lit_mm.tiling import Pad, Uhd, UhdArxiv
from lit_mm.tiling.uhd import plan_uhd, plan_uhd_arxiv
from lit_mm.vision.vit import ViT
from lit_mm.weights.convert import load_strict
from lit_mm.weights.llava_uhd import llava_uhd_to_model
from tests.rows import loss_sum
from tests.tiny import Noise, language

SIZE = 28
SHAPES = ((28, 28), (40, 30), (20, 90), (70, 15), (9, 60))


def build(any_size: bool = True, connector: Any = None, **options: Any) -> LlavaUHD:
    vision = ViT(image_size=SIZE, patch=14, width=16, layers=2, heads=2, select_layer=-2, any_size=any_size)

    def resampler(vision_width: int, language_width: int) -> SliceResampler:
        return SliceResampler(vision_width, language_width, side=3, heads=4)

    return LlavaUHD(vision, language(), "nano", image_size=SIZE, connector=connector or resampler, **options)


def asked(*shapes: tuple[int, int]) -> Document:
    pictures = [Noise(number, *shape) for number, shape in enumerate(shapes)]
    return Document("asked", (Turn("user", (*pictures, "what is it?")), Turn("assistant", ("a sign",))))


def test_slices_come_first_with_separators_and_the_overview_last() -> None:
    module = build()
    processor = module.processor
    sample = processor.sample(asked((40, 60)))
    (plan,) = sample.plans
    (start, stop), rows, columns = sample.spans[0], *plan.grid
    assert (rows, columns) == plan_uhd(40, 60, size=SIZE).grid and rows * columns > 1
    pairs = zip(sample.input_ids, sample.index, strict=True)
    text = ["v" if place >= 0 else processor.tokenizer.decode([token]) for token, place in pairs]
    row = ",".join(["v" * 9] * columns) + "\n"
    assert "".join(text[start:stop]) == row * rows + "v" * 9
    assert sample.index[start:stop].max() == 9 * (rows * columns + 1) - 1
    assert not (sample.labels[start:stop] >= 0).any()  # neither visual tokens nor separators are learnt


def test_views_of_all_shapes_make_one_call_of_each_part_and_the_tokens_that_each_makes_alone() -> None:
    module = build().eval()
    network, processor = module.network, module.processor
    samples = [processor.sample(asked(shape)) for shape in SHAPES]
    batch = collate(samples, processor)
    assert len({group.shape for group in batch.views.groups}) == len(batch.views.groups) > 3
    calls: dict[str, int] = {}
    for name, part in [*network.vision.named_modules(prefix="v"), *network.connector.named_modules(prefix="c")]:
        part.register_forward_hook(  # a call without operands reads learned vectors
            lambda _, inputs, options, __, name=name: calls.update(
                {name: calls.get(name, 0) + bool(inputs or options)}
            ),
            with_kwargs=True,
        )
    with torch.no_grad():
        together = network.embed(batch)[0, batch.visual]
        assert set(calls.values()) == {1}  # also inside the parts
        alone = [collate([sample], processor) for sample in samples]
        each = torch.cat([network.embed(one)[0, one.visual] for one in alone])
    torch.testing.assert_close(together, each, rtol=0, atol=1e-5)


def test_a_projector_makes_a_token_of_each_patch_in_the_same_one_call() -> None:
    module = build(connector=MLPProjector).eval()
    samples = [module.processor.sample(asked(shape)) for shape in SHAPES]
    batch = collate(samples, module.processor)
    patches = [view.shape[-2] * view.shape[-1] // 14**2 for group in batch.views.groups for view in group]
    assert batch.views.tokens == sum(patches) and len(set(patches)) > 1
    with torch.no_grad():
        together = module.network.bank(batch.views)
        groups = [module.network.connector(module.network.vision(group)).flatten(0, 1) for group in batch.views.groups]
    torch.testing.assert_close(together, torch.cat(groups), rtol=0, atol=1e-5)


def test_what_learns_gets_a_gradient_and_nothing_else_and_a_batch_without_pictures_zeros() -> None:
    module = build()
    parts = module.parts()
    assert set(parts) == {"vision", "connector", "language"}
    apply_stage(parts, Stage("finetune", {"connector": Train(1e-3), "language": Train(1e-3)}))
    sighted, blind = asked(*SHAPES), Document("blind", (Turn("user", ("hi",)), Turn("assistant", ("yes",))))
    loss_sum(module, collate([module.processor.sample(blind)], module.processor)).backward()
    assert all(p.grad is not None and not p.grad.any() for p in parts["connector"].values())
    loss_sum(module, collate([module.processor.sample(sighted)], module.processor)).backward()
    assert all(p.grad is None for p in parts["vision"].values())
    for part in ("connector", "language"):
        assert all(p.grad.any() or name == "k.bias" for name, p in parts[part].items()), part


def test_the_first_stage_sees_the_overview_alone() -> None:
    module = build()
    overview = Inputs(Uhd(max_slices=1, size=SIZE), InOrder(), Plain())
    first = module.processor_of(Stage("pretrain", {"connector": Train(1e-3)}, inputs=overview))
    assert first.visual_tokens(90, 60) == 9 < module.processor.visual_tokens(90, 60)
    assert first.tiling(90, 60).views == module.processor.tiling(90, 60).views[-1:]


def test_the_arxiv_version_has_its_own_slices_and_nothing_between_them() -> None:
    module = build(inputs=Inputs(UhdArxiv(size=SIZE), InOrder()))
    for shape in SHAPES:
        plan = plan_uhd_arxiv(*shape, size=SIZE)
        assert module.processor.tiling(*shape) == plan
        assert module.processor.visual_tokens(*shape) == 9 * len(plan.views)


def test_the_limit_of_slices_may_be_raised() -> None:
    more = build(inputs=Inputs(Uhd(max_slices=16, size=SIZE)))
    assert [len(module.processor.tiling(28, 700).views) for module in (build(), more)] == [8, 17]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"any_size": False}, r"sizes that follow the image, .* takes 28 x 28 .*: `vision\.init_args\.any_size: true`"),
        (
            {"connector": DownsampleMLP},
            r"takes square grids .*: `connector: lit_mm\.connectors\.mlp\.MLPProjector`",
        ),
    ],
)
def test_parts_that_cannot_take_any_shape_are_refused_and_told_what_can(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(**options)
    module = build(**options, inputs=Inputs(Pad(SIZE), InOrder()))
    slices = Inputs(Uhd(size=SIZE), SlicesThenOverview())
    with pytest.raises(UserError, match=r"^stages\.finetune\.inputs: .*" + said):
        module.processor_of(Stage("finetune", {"connector": Train(1e-3)}, inputs=slices))


def test_a_whole_checkpoint_of_the_authors_fits() -> None:
    module = build()
    ours = module.state_dict()
    name = "network.connector."
    theirs = {
        f"model.mm_projector.{theirs}": ours[name + of]
        for theirs, of in {
            "query": "query",
            "kv_proj.weight": "kv_proj.weight",
            "attn.out_proj.weight": "out.weight",
            "attn.out_proj.bias": "out.bias",
        }.items()
    }
    for norm, of in (("ln_q", "norm_q"), ("ln_kv", "norm_kv"), ("ln_post", "norm")):
        theirs |= {f"model.mm_projector.{norm}.{kind}": ours[f"{name}{of}.{kind}"] for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        theirs[f"model.mm_projector.attn.in_proj_{kind}"] = torch.cat([ours[f"{name}{of}.{kind}"] for of in "qkv"])
    theirs["model.mm_projector.proj"] = ours[f"{name}proj.weight"].T
    theirs["model.mm_projector.pos_embed"] = module.network.connector.positions
    rest = {key: tensor for key, tensor in ours.items() if not key.startswith(name)}
    fresh = build()
    load_strict(fresh, rest | llava_uhd_to_model(theirs))
    assert all(torch.equal(tensor, ours[key]) for key, tensor in fresh.state_dict().items())
    with pytest.raises(UserError, match=r"connector\.newline"):
        load_strict(fresh, rest | llava_uhd_to_model(theirs | {"model.mm_projector.newline": torch.zeros(1)}))
