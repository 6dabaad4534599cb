"""lit_mm beside transformers: the same documents, sizes and weights, in turns in one process, in CPU seconds.

    OMP_NUM_THREADS=1 python benchmarks/side_by_side.py [--families llava_1_5 llava_next] [--precisions fp32 bf16]
                     [--only training kept decoding] [--documents 12] [--steps 20] [--new-tokens 24] [--json FILE]

Takes the nano recipe of a family in its last stage, with a connector as published, and the model of transformers of
the same sizes (`LlavaForConditionalGeneration`, `LlavaNextForConditionalGeneration`) with the same weights. Both get
the same documents, laid out by our processor: ours as one flat row, theirs padded to the longest. The parts:

- training: useful tokens per CPU second of a step (forward, backward, clipping, AdamW), and the first losses, which
  agree where both do the same;
- kept: bytes that the forward pass keeps for the backward pass, per useful token, parameters left out, with the nano
  vocabulary and with 32,000 token ids;
- decoding: greedy answers to held-out questions of unequal length, stop tokens on, at batch 1 and 64: new tokens per
  CPU second.

Run it by hand, with nothing else on the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from lit_mm.commands.describe import aligned
from lit_mm.commands.recipe import RecipeCLI, quiet
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import decode, prompt_sample
from lit_mm.language.llama import Llama
from lit_mm.module import MultimodalModule
from lit_mm.objectives.next_token import NextToken
from lit_mm.samples.batch import IGNORE
from lit_mm.samples.collate import collate
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.layout import BaseThenUnpaddedRows
from lit_mm.samples.processor import TEXT, Processor, Sample
from lit_mm.stages.stage import Stage
from lit_mm.tiling import AnyRes
from lit_mm.tiling.anyres import GRIDS
from lit_mm.weights.llava import hf_llava_to_model
from lit_mm.weights.llava_next import hf_llava_next_to_model

IMAGE_ID = 511  # the nano tokenizer has 509 tokens of 512
WARM_UP = 3  # steps that are not measured


@dataclass
class Pair:
    """A model of ours and the same one of transformers.

    Attributes:
        module: ours, whose last stage has begun.
        twin: that of transformers; it learns the same parts.
        processor: lays out the documents of both.
        documents, questions: of training, and held out.
        tiled: images are cut into tiles.
    """

    module: MultimodalModule
    twin: nn.Module
    processor: Processor
    documents: Sequence[Any]
    questions: Sequence[Any]
    tiled: bool


def open_pair(family: str, threads: int = 1) -> Pair:
    """Build both models of a family with the weights that the nano recipe begins with."""
    torch.set_num_threads(threads)
    options = ["--data.init_args.num_workers", "0", "--model.init_args.connector.init_args.standardise", "false"]
    cli = RecipeCLI(["--config", f"experiments/{family}.yaml", *options], "fit")
    module, stage = cli.model, cli.stages[-1]
    module.load_pretrained()
    module.begin(stage, total_steps=1)
    tiled = family == "llava_next"
    processor = module.processor
    if tiled:  # transformers breaks ties between grids in another way than the authors
        side = module.network.vision.image_size
        processor = processor.with_inputs(Inputs(AnyRes(side, rule="hf"), BaseThenUnpaddedRows("hf")))
    twin = twin_of(module, stage, tiled)
    data = cli.data_of(stage)
    return Pair(module, twin, processor, data.source(), data.heldout(), tiled)


def twin_of(module: MultimodalModule, stage: Stage, tiled: bool) -> nn.Module:
    """The model of transformers with the sizes, the weights and the trainable parts of ours."""
    vision, language = module.network.vision, module.network.language
    of_vision = CLIPVisionConfig(
        hidden_size=vision.width,
        intermediate_size=vision.blocks[0].fc1.out_features,
        num_hidden_layers=vision.num_layers,
        num_attention_heads=vision.heads,
        image_size=vision.image_size,
        patch_size=vision.patch,
    )
    of_text = LlamaConfig(**language.lm.config.to_diff_dict() | {"attn_implementation": "sdpa"})
    shared = {
        "vision_config": of_vision,
        "text_config": of_text,
        "image_token_index": IMAGE_ID,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": language.tie_embeddings,
    }
    if tiled:
        side = vision.image_size
        grids = [[columns * side, rows * side] for rows, columns in GRIDS]  # (width, height)
        twin = LlavaNextForConditionalGeneration(LlavaNextConfig(image_grid_pinpoints=grids, **shared))
        convert = hf_llava_next_to_model
    else:
        twin, convert = LlavaForConditionalGeneration(LlavaConfig(**shared)), hf_llava_to_model
    copy_weights(module, twin, convert)
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_("vision" in stage.train or "vision_tower" not in name)
    return twin


def copy_weights(
    module: MultimodalModule, twin: nn.Module, convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    """Fill the twin with our weights, through the key map that loads published weights, read backwards.

    The map moves elements and computes nothing, so it is applied to the numbers of the elements.
    """
    state = twin.state_dict()
    sizes = {name: tensor.numel() for name, tensor in state.items()}
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
    numbers = {n: torch.arange(s, s + sizes[n], dtype=torch.float64).view_as(state[n]) for n, s in starts.items()}
    values = torch.full((sum(sizes.values()),), torch.nan)
    weights = module.state_dict()
    for name, places in convert(numbers).items():
        if name in weights:
            values[places.flatten().long()] = weights[name].detach().flatten()
    with torch.no_grad():
        for name, tensor in state.items():
            part = values[starts[name] : starts[name] + sizes[name]]
            if not part.isnan().any():  # what ours does not have stays as it is: it is not read
                tensor.copy_(part.view_as(tensor))


# --- batches ---------------------------------------------------------------------------------------------------------
def padded(pair: Pair, samples: Sequence[Sample], *, left: bool = False) -> dict[str, Tensor]:
    """What the twin reads for some samples, padded on the right, or on the left to be continued."""
    longest = max(map(len, samples))
    ids = np.zeros((len(samples), longest), np.int64)
    labels, mask = np.full_like(ids, IGNORE), np.zeros_like(ids)
    for row, sample in enumerate(samples):
        place = slice(longest - len(sample), longest) if left else slice(0, len(sample))
        ids[row, place] = np.where(sample.index != TEXT, IMAGE_ID, sample.input_ids)
        labels[row, place], mask[row, place] = sample.labels, 1
    batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    if not left:
        batch["labels"] = torch.from_numpy(labels)
    views = [view for sample in samples for view in pair.processor.views(sample)]
    if not views:
        return batch
    if not pair.tiled:
        return batch | {"pixel_values": torch.stack(views)}
    counts = [len(plan.views) for sample in samples for plan in sample.plans]
    pictures = nn.utils.rnn.pad_sequence(list(torch.stack(views).split(counts)), batch_first=True)
    sizes = [(picture.height, picture.width) for sample in samples for picture in sample.document.pictures]
    return batch | {"pixel_values": pictures, "image_sizes": torch.tensor(sizes)}


def precision_of(name: str) -> AbstractContextManager:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "bf16")


# --- parts -----------------------------------------------------------------------------------------------------------
def training(pair: Pair, precision: str, documents: int, steps: int) -> dict[str, Any]:
    """Steps of both in turns."""
    models = {"lit_mm": pair.module.network.train(), "transformers": pair.twin.train()}
    learnt = {name: [p for p in model.parameters() if p.requires_grad] for name, model in models.items()}
    optimizers = {name: torch.optim.AdamW(parameters, lr=1e-4, fused=True) for name, parameters in learnt.items()}
    objective = NextToken()
    seconds: dict[str, list[float]] = {name: [] for name in models}
    losses: dict[str, list[float]] = {name: [] for name in models}
    tokens, padding = [], []
    for step in range(WARM_UP + steps):
        numbers = range(step * documents, (step + 1) * documents)
        samples = [pair.processor.sample(pair.documents[number]) for number in numbers]
        batch, theirs_batch = collate(samples, pair.processor), padded(pair, samples)

        def loss_of(name: str, batch: Any = batch, inputs: Any = theirs_batch) -> Tensor:
            if name == "transformers":
                return pair.twin(**inputs).loss
            return objective(pair.module.network, batch) / batch.num_supervised

        for name in sorted(models, reverse=step % 2 == 1):
            begun = time.process_time()
            with precision_of(precision):
                loss = loss_of(name)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learnt[name], 1.0)
            optimizers[name].step()
            optimizers[name].zero_grad(set_to_none=True)
            seconds[name].append(time.process_time() - begun)
            losses[name].append(loss.item())
        tokens.append(batch.num_tokens)
        padding.append(1 - batch.num_tokens / theirs_batch["input_ids"].numel())
    rates = {
        name: [count / second for count, second in zip(tokens[WARM_UP:], taken[WARM_UP:], strict=True)]
        for name, taken in seconds.items()
    }
    return {
        **{f"{name}, tokens/s": statistics.median(rate) for name, rate in rates.items()},
        "ratio": sum(seconds["transformers"][WARM_UP:]) / sum(seconds["lit_mm"][WARM_UP:]),
        "first losses": [losses["lit_mm"][0], losses["transformers"][0]],
        "padding of transformers": statistics.mean(padding[WARM_UP:]),
    }


def kept(pair: Pair, precision: str, documents: int, vocabulary: int | None) -> dict[str, Any]:
    """Bytes for the backward pass per useful token; `vocabulary`: other language models, of so many token ids."""
    network, twin = pair.module.network.train(), pair.twin.train()
    language = network.language
    if vocabulary is not None:
        config = twin.config.to_dict()
        config["text_config"] |= {"vocab_size": vocabulary, "tie_word_embeddings": False}
        twin = type(twin)(type(twin.config).from_dict(config | {"tie_word_embeddings": False})).train()
        twin.requires_grad_(True)
        for name, parameter in twin.named_parameters():
            parameter.requires_grad_(dict(pair.twin.named_parameters()).get(name, parameter).requires_grad)
        sizes = {"width": language.width, "layers": language.num_layers, "vocab_size": vocabulary}
        sizes |= {"heads": language.heads, "kv_heads": language.kv_heads, "head_width": language.head_width}
        network.language = Llama(ffn_width=language.lm.config.intermediate_size, **sizes).train()
    samples = [pair.processor.sample(pair.documents[number]) for number in range(documents)]
    batch, inputs = collate(samples, pair.processor), padded(pair, samples)
    with precision_of(precision):
        sizes_kept = {
            "lit_mm": bytes_kept(lambda: NextToken()(network, batch), network),
            "transformers": bytes_kept(lambda: twin(**inputs).loss, twin),
        }
    network.language = language
    per_token = {f"{name}, KiB/token": size / batch.num_tokens / 1024 for name, size in sizes_kept.items()}
    return per_token | {"ratio": sizes_kept["lit_mm"] / sizes_kept["transformers"]}


def bytes_kept(loss_of: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes of the storages that a forward saves for its backward pass, each once, parameters left out."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = loss_of()
        total = sum(sizes.values())  # while the graph lives: freed memory would be used again
    del loss
    return total


def decoding(pair: Pair, precision: str, batch_size: int, new_tokens: int) -> dict[str, Any]:
    """Answers of both in turns to as many held-out questions as a batch has, or to eight of them one by one."""
    network, twin, processor = pair.module.network.eval(), pair.twin.eval(), pair.processor
    stops = sorted(processor.prompt.stop_ids(processor.tokenizer))
    questions = [prompt_sample(processor, document) for document in pair.questions[: max(batch_size, 8)]]
    batches = [questions[start : start + batch_size] for start in range(0, len(questions), batch_size)]
    seconds: dict[str, list[float]] = {"lit_mm": [], "transformers": []}
    tokens = {"lit_mm": 0, "transformers": 0}

    def answers(name: str, samples: Sequence[Sample]) -> list[list[int]]:
        if name == "lit_mm":
            batch = collate(samples, processor.for_questions())
            return decode(network, batch, stop_ids=stops, decoding=Decoding(new_tokens))
        inputs = padded(pair, samples, left=True)
        options = {"do_sample": False, "max_new_tokens": new_tokens, "eos_token_id": stops, "pad_token_id": 0}
        rows = twin.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].tolist()
        ends = [next((n + 1 for n, token in enumerate(row) if token in stops), len(row)) for row in rows]
        return [row[:end] for row, end in zip(rows, ends, strict=True)]

    same = total = 0
    with torch.no_grad(), precision_of(precision):
        for number, samples in enumerate([batches[0], *batches]):  # the first once more, to warm up
            results = {}
            for name in sorted(seconds, reverse=number % 2 == 1):
                begun = time.process_time()
                results[name] = answers(name, samples)
                if number:
                    seconds[name].append(time.process_time() - begun)
                    tokens[name] += sum(map(len, results[name]))
            if number:
                same += sum(a == b for a, b in zip(results["lit_mm"], results["transformers"], strict=True))
                total += len(samples)
    rates = {name: tokens[name] / sum(seconds[name]) for name in seconds}
    return {
        **{f"{name}, tokens/s": rate for name, rate in rates.items()},
        "ratio": rates["lit_mm"] / rates["transformers"],
        "same answers": same / total,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--families", nargs="+", choices=("llava_1_5", "llava_next"), default=["llava_1_5", "llava_next"]
    )
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parts = ("training", "kept", "decoding")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="some of the parts")
    parser.add_argument("--documents", type=int, default=12, help="of a step")
    parser.add_argument("--steps", type=int, default=20, help=f"after the first {WARM_UP}, which are not measured")
    parser.add_argument("--new-tokens", type=int, default=24, help="where an answer is cut")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    quiet()
    results: list[dict[str, Any]] = []

    def report(family: str, precision: str, part: str, figures: dict[str, Any]) -> None:
        results.append({"family": family, "precision": precision, "part": part} | figures)
        print(json.dumps(results[-1]), flush=True)

    for family in options.families:
        pair = open_pair(family)
        for precision in options.precisions:
            if "decoding" in options.only:
                for size in (1, 64):
                    figures = decoding(pair, precision, size, options.new_tokens)
                    report(family, precision, f"decoding, batch {size}", figures)
            if "kept" in options.only:
                for vocabulary in (None, 32000):
                    figures = kept(pair, precision, options.documents, vocabulary)
                    report(family, precision, f"kept, vocabulary {vocabulary or 512}", figures)
            if "training" in options.only:
                report(family, precision, "training", training(pair, precision, options.documents, options.steps))
    names = ("family", "precision", "part")
    print(aligned([[*names, "ratio"], *([*(row[name] for name in names), f"{row['ratio']:.2f}"] for row in results)]))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
