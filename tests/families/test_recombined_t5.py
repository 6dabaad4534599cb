"""An encoder-decoder reads pictures: flat rows, mixtures, training and beams work as with a decoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_mm.datamodules.mixture import Member, Mixture
from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.families import Recombined
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import answer
from lit_mm.language.partial_lora import PartialLoRA
from lit_mm.language.t5 import T5
from lit_mm.prompts.text_to_text import TextToText
from lit_mm.run.folder import RunFolder
from lit_mm.run.stages import run_stages
from lit_mm.samples.collate import collate
from lit_mm.samples.inputs import Inputs
from lit_mm.stages.stage import Stage, Train
from lit_mm.tiling import Stretch
from lit_mm.vision.vit import ViT
from tests.rows import loss_sum
from tests.tiny import Noise, trainer


def build(**changes: object) -> Recombined:
    torch.manual_seed(0)
    vision = ViT(image_size=28, patch=14, width=16, layers=1, heads=2)
    language = T5(width=32, layers=1, heads=2, ffn_width=48, vocab_size=512)
    return Recombined(vision, language, "nano", Inputs(Stretch(28), prompt=TextToText()), **changes)


def asked(number: int) -> Document:
    pictures = tuple(Noise(10 * number + n) for n in range(number % 3))
    question = " ".join(["what", "is", "the", "colour"][: 1 + number % 4])
    turns = (Turn("user", (*pictures, question)), Turn("assistant", (" ".join(["red"] * (1 + number % 2)),)))
    return Document(f"t5/{number}", turns)


def test_a_flat_row_gives_the_loss_and_gradients_of_single_samples() -> None:
    module = build()
    samples = [module.processor.sample(asked(number)) for number in range(6)]

    def gradients(groups: list[list]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        module.zero_grad(set_to_none=True)
        loss = sum(loss_sum(module, collate(group, module.processor)) for group in groups)
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in module.named_parameters()}

    loss, alone = gradients([[sample] for sample in samples])
    together, packed = gradients([samples])
    torch.testing.assert_close(together, loss, rtol=1e-5, atol=0)
    for name, gradient in alone.items():
        assert gradient.any() or "vision" in name, name
        torch.testing.assert_close(packed[name], gradient, rtol=0, atol=1e-5 * float(gradient.abs().max()) + 1e-9)


def test_it_trains_on_a_mixture_and_answers_with_beams(tmp_path: Path) -> None:
    module, folder = build(), RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    members = [Member([asked(n) for n in range(6)], "a"), Member([asked(n) for n in range(6, 12)], "b")]
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    run_stages(
        module,
        [Stage("all", {part: Train(lr=1e-2) for part in module.parts()}, max_steps=2)],
        folder,
        data_of=lambda stage: Mixture(members, row_tokens=64, global_batch=2, num_workers=0),
        trainer_of=lambda **options: trainer(**options),
        seed=0,
    )
    moved = [name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])]
    assert {name.split(".")[1] for name in moved} == {"vision", "connector", "language"}
    documents = [asked(number) for number in range(3)]
    beams = answer(module, documents, decoding=Decoding(5, beams=3))
    assert len(beams) == 3
    alone = [answer(module, [document], decoding=Decoding(5, beams=3))[0] for document in documents]
    assert beams == alone


def test_what_wraps_a_decoders_layers_is_refused() -> None:
    with pytest.raises(UserError, match="needs a decoder, got T5"):
        build(injection=PartialLoRA(rank=2))
