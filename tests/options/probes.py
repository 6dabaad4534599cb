"""Probes: what a part does, as numbers that can be compared. Every probe is deterministic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_mm.checkpoints.origins import Origins
from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.prompts.prompt import PictureRun
from lit_mm.prompts.source import load_tokenizer
from lit_mm.stages.parts import Parts
from lit_mm.stages.schedule import Schedule
from lit_mm.stages.stage import Stage, Train
from lit_mm.tiling.plan import Tiling
from tests.tiny import Noise

Behaviour = tuple[Any, ...]
SIZES = ((28, 28), (30, 100), (100, 30), (300, 200), (400, 640), (56, 28), (200, 1200))  # (height, width), pixels


class Operations(TorchDispatchMode):
    """Lists the names of the operations inside a `with` block, the backward pass included."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def numbers(tensor: Tensor) -> tuple[Any, ...]:
    """Shape and two sums of a tensor, rounded to four digits."""
    values = tensor.detach().double().flatten()
    weights = torch.linspace(0.5, 1.5, len(values), dtype=torch.float64)
    return (*tensor.shape, *(f"{float(x):.4e}" for x in (values.sum(), (values * weights).sum(), values.abs().sum())))


def tensors_in(outputs: Any) -> list[Tensor]:
    """All tensors of a nested output."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    return [tensor for output in outputs for tensor in tensors_in(output)] if isinstance(outputs, (list, tuple)) else []


def of_module(call: Callable[[nn.Module], Any]) -> Callable[[nn.Module], Behaviour]:
    """Parameters, output in training and evaluation mode, gradients and operations of a module.

    Args:
        call: function that calls the module on fixed inputs.
    """

    def probe(module: nn.Module) -> Behaviour:
        parameters = [(name, numbers(parameter)) for name, parameter in module.state_dict().items()]
        torch.manual_seed(1)
        with Operations() as operations:
            outputs = tensors_in(call(module.train()))
            learnt = [output for output in outputs if output.requires_grad]
            if learnt:
                sum(output.float().square().sum() for output in learnt).backward()
        gradients = [numbers(p.grad) for p in module.parameters() if p.grad is not None]
        evaluated = [numbers(output) for output in tensors_in(call(module.eval()))]
        Origins(Parts(nn.ModuleDict({"part": module}))).load()  # published weights, if the module names some
        return parameters, [numbers(output) for output in outputs], gradients, evaluated, operations.names

    return probe


def of_tiling(tiling: Tiling) -> Behaviour:
    """Plans of images of several sizes."""
    plans = []
    for height, width in SIZES:
        try:
            plans.append(repr(tiling(height, width)))
        except UserError as error:
            plans.append(str(error))
    return tuple(plans)


def of_schedule(schedule: Schedule) -> Behaviour:
    """Shares of the peak rate over a stage."""
    return tuple(round(schedule.factor(step, 40), 9) for step in range(40))


CHAT = (
    Turn("system", ("Speak plainly.",)),
    Turn("user", (Noise(0), "What colour , is this ? (it's A) <box>(10,20),(300,400)</box> <point>(5,6)</point>")),
    Turn("assistant", ("A large red circle. " + "near the page " * 12,)),
    Turn("user", ("and this?",)),
    Turn("assistant", ("blue",)),
)
PAGES = (
    Document("chat", CHAT),
    Document("chat of one turn", CHAT[1:3]),
    Document("late picture", (Turn("user", ("what is", Noise(1), "?")), CHAT[-1])),
    Document("picture below", (Turn("user", ("what is this?", Noise(1))), CHAT[-1])),
    Document("caption", (Turn("page", (Noise(2), "A Red circle; on-a page . " + "near the page " * 16)),)),
    Document("question", (CHAT[1],)),
    Document("text", CHAT[3:]),
    Document("boxes", (Turn("user", (Noise(3), "<box>1, 2, 3, 4</box> and <point>5, 6</point>")), CHAT[-1])),
    Document("rendered", (Turn("user", (Noise(4), "what is this?")), CHAT[-1]), text_format="llava"),
)


def of_prompt(prompt: Any) -> Behaviour:
    """Tokens, labels, places of pictures and stop tokens of several documents with the nano tokenizer."""
    tokenizer = load_tokenizer("nano")
    runs: list[Any] = []
    for document in PAGES:
        try:
            runs.append(
                [
                    (run.number,) if isinstance(run, PictureRun) else (tuple(run.ids), tuple(run.learn), run.apart)
                    for run in prompt.runs(document, tokenizer)
                ]
            )
        except UserError as error:
            runs.append(str(error))
    try:
        stops: Any = sorted(prompt.stop_ids(tokenizer))
    except UserError as error:
        stops = str(error)
    return runs, stops


def of_data(processor: Any, part: str) -> Callable[[Any], Behaviour]:
    """First documents, held-out documents, the first rows of a stage, its loader, and the policy for bad samples.

    What the policy does is tested in tests/stream/test_screen.py.

    Args:
        processor: function that builds the processor of a model.
        part: part that the stage trains.
    """

    def probe(data: Any) -> Behaviour:
        source = data.source()
        documents = [repr(source[number]) for number in range(min(8, len(source)))]
        held_out = [repr(document) for document in data.heldout()]
        steps = data.begin(processor(), Stage("a", {part: Train(1e-2)}, max_steps=3), seed=0)
        rows = [micro.rows for micro in data.stream]
        first = next(iter(data.stream))
        batch = data.rows[first]
        pixels = [numbers(tensor) for tensor in tensors_in(vars(batch) if hasattr(batch, "__dict__") else batch)]
        loader = data.train_dataloader()
        start = type(loader.multiprocessing_context).__name__
        policy = (data.too_long, data.on_bad_sample, data.max_bad, data.max_unsupervised)
        return len(source), documents, held_out, steps, rows, pixels, loader.num_workers, start, policy

    return probe
