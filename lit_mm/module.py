"""The base LightningModule of all families. A family's constructor composes network and processor, and is final."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import cached_property
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from lit_mm.checkpoints.contents import kept_tensors
from lit_mm.checkpoints.origins import Origins
from lit_mm.checkpoints.writing import optimizer_groups
from lit_mm.combination.declared import require_parts, require_second
from lit_mm.combination.legal import IN_A_FAMILY, Part
from lit_mm.distributed.zero import ZeRO
from lit_mm.documents.document import Document
from lit_mm.documents.examination import Examination
from lit_mm.errors import UserError
from lit_mm.layers.adapters import add_adapters, remove_adapters
from lit_mm.layers.protocols import bounds_of
from lit_mm.model import MultimodalModel
from lit_mm.objectives.next_token import NextToken
from lit_mm.objectives.objective import Comparing, Objective, Timed
from lit_mm.prompts.source import is_on_this_machine
from lit_mm.samples.batch import Batch
from lit_mm.samples.processor import Processor
from lit_mm.samples.target import check_target
from lit_mm.stages.adapter import Adapter, After, adapter_part
from lit_mm.stages.average import keep_average
from lit_mm.stages.groups import layered, parameter_groups
from lit_mm.stages.optimizer import make_optimizer
from lit_mm.stages.parts import Parts
from lit_mm.stages.stage import Stage, apply_stage, check_recipe
from lit_mm.stages.thaw import late_parts, learning_parts, set_modes
from lit_mm.stream.order import stable_hash


class Examiner(Protocol):
    """Examines a model on held-out documents. A family may set `MultimodalModule.examiner`."""

    def __call__(
        self, module: MultimodalModule, documents: Sequence[Document], *, blind: bool = False, batch_size: int = 64
    ) -> Examination:
        """Examine a model. Every rank of a job calls this and gets the whole examination.

        Args:
            module: model to examine.
            documents: held-out documents; each ends in an answer, which is hidden from the model.
            blind: True shows pictures of other documents and so measures what the model answers without seeing; see
                `lit_mm.evaluation.examiners.without_sight`.
            batch_size: number of documents per batch.
        """
        ...


class MultimodalModule(L.LightningModule):
    """Trains a network stage by stage.

    Args:
        network: network that composes the parts.
        processor: function that builds the processor, which turns documents into samples and counts their tokens. It is
            called in the constructor if the network reads images; the files of a published tokenizer are read later,
            when they are needed.
        free: parts that a recipe may choose.
        objectives: name -> objective that a stage may weigh; a stage without objectives uses the first. None means
            next-token prediction under the name "next_token".
    Raises:
        UserError: parts do not go together; the message names the nearest that do, see `lit_mm.combination.legal`.
    """

    def __init__(
        self,
        network: MultimodalModel,
        processor: Callable[[], Processor],
        free: frozenset[Part] = IN_A_FAMILY,
        objectives: Mapping[str, Objective] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.objectives = dict(objectives or {"next_token": NextToken()})
        self.examiner: Examiner | None = None  # None: exact match of answers
        self.micro_losses: dict[str, Tensor] = {}  # objective -> share of the step's loss in the last micro-batch
        self.free = free
        self.stage_names: frozenset[str] = frozenset()  # names of stages in the constructor's arguments
        self.adapters: dict[str, Adapter] = {}  # part -> adapter that it has now
        self.strict_loading = False  # Trainers load no weights: `run_stages` has loaded and checked them
        self._make_processor = processor
        self.stage: Stage | None = None
        self.stage_number = 1
        self.total_steps = 0  # optimizer steps of the current stage
        self.first_step = 0  # optimizer steps of all earlier stages
        self.seed = 0
        self._learning: frozenset[str] = frozenset()  # parts that learn at the current optimizer step
        self.data_digests: dict[str, Any] = {}  # source of the stage -> digest of its files; filled on rank 0
        self.data_changes: dict[str, str] = {}  # source -> its difference from the resumed checkpoint
        self.ends: dict[str, dict[str, Any]] = {}  # stage that a callback ended early -> step, planned steps, reason
        self.config_text = ""  # resolved config, written to checkpoints
        self.save_frozen = False  # True: checkpoints also store frozen parts that could be loaded from their origin
        self._parts = Parts(network)
        self.origins = Origins(self._parts)
        if isinstance(network, MultimodalModel) and network.vision is not None:
            self._require_parts(self.processor, "model.init_args")

    def _require_parts(self, processor: Processor, key: str) -> None:
        """Refuse a processor that does not fit the parts of a model that reads images."""
        network = self.network
        if isinstance(network, MultimodalModel) and network.vision is not None:
            require_parts(network.vision, network.connector, processor, self.free, key)
            require_second(network.second_vision, processor, key)

    @cached_property
    def processor(self) -> Processor:
        return self._make_processor()

    def processors_of(self, stage: Stage) -> dict[int, Processor]:
        """Return optimizer step of a stage -> processor of its training documents from that step on.

        The first step is 0. A model that reads pixels alone has no processors.

        Raises:
            UserError: the inputs of the stage do not fit the parts of the model.
        """
        if self.processor is None:  # the model reads pixels alone
            return {}
        current = self.processor.with_inputs(stage.inputs)
        processors = {0: current}
        keys = {0: f"stages.{stage.name}.inputs"}
        for step in sorted(stage.inputs_from):
            current = processors[step] = current.with_inputs(stage.inputs_from[step])
            keys[step] = f"stages.{stage.name}.inputs_from.{step}"
        for step, processor in processors.items():
            if processor is not self.processor:
                self._require_parts(processor, keys[step])
        return processors

    def processor_of(self, stage: Stage) -> Processor | None:
        """Return the processor of a stage's training documents at its first step; see `processors_of`."""
        return self.processors_of(stage).get(0)

    # --- parts ---------------------------------------------------------------------------------------------------
    def modules_by_part(self) -> dict[str, nn.Module]:
        """Return part -> child of the network; see `lit_mm.stages.parts.Parts.modules`."""
        return self._parts.modules()

    def base_parts(self) -> list[str]:
        """Return the sorted parts without adapters, which come and go with the stages."""
        return sorted(self.parts().keys() - {adapter_part(part) for part in self.adapters})

    def added_parts(self) -> list[str]:
        """Return the sorted parts inside other parts, such as newline or partial_lora, without adapters."""
        return sorted(set(self.base_parts()) - self.modules_by_part().keys())

    def part_of(self, parameter: str) -> str:
        """Return the part of a parameter, by the parameter's name in the network; see `lit_mm.stages.parts.Parts`."""
        return self._parts.part_of(parameter)

    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        """Return part -> name relative to the part -> parameter. Every parameter belongs to exactly one part."""
        return self._parts.parameters()

    def parameters_of(self, part: str) -> dict[str, nn.Parameter]:
        """Return name in the network -> parameter of a part."""
        return self._parts.parameters_of(part)

    def parts_read(self, stage: Stage) -> frozenset[str]:
        """Return the parts that a stage's objectives read, and all parts in the same children of the network.

        Raises:
            UserError: the stage trains a part that none of its objectives reads.
        """
        objectives = self.weights_of_objectives(stage)
        declared = [self.objectives[name].parts for name in objectives]
        if None in declared:
            return frozenset(self.parts())
        read = self._parts.together_with(frozenset().union(*declared))
        if unread := sorted(stage.train.keys() - read):
            raise UserError(
                f"stages.{stage.name}.train names {unread}, but none of the objectives {sorted(objectives)} uses "
                "these parts, so they would not be trained. Remove them from `train`, or weigh an objective that "
                "uses them"
            )
        return read

    def reading_only(self, stage: Stage) -> AbstractContextManager[None]:
        """Take the parts that a stage does not read out of the network inside a `with` block; see `Parts.only`."""
        return self._parts.only(self.parts_read(stage))

    def check_recipe(self, stages: list[Stage]) -> None:
        """Refuse stages that this model cannot run, and parts that do not fit their published files on this machine.

        Raises:
            UserError: see `lit_mm.stages.stage.check_recipe`, `parts_read`, `check_vocabulary`, `check_targets` and
                `lit_mm.checkpoints.origins.Origins.check_configs`.
        """
        check_recipe(stages, self.parts(), self.objectives)
        for stage in stages:
            self.parts_read(stage)
        self.origins.check_configs()
        if self.processor is not None and is_on_this_machine(self.processor.tokenizer):
            self.check_vocabulary()
            for stage in stages:
                self.check_targets(stage)

    def check_targets(self, stage: Stage) -> None:
        """Refuse prompts of a stage that an encoder-decoder cannot learn; this reads the tokenizer's files.

        Raises:
            UserError: see `lit_mm.samples.target.check_target`.
        """
        if self.processor is None or not self.processor.writes_target:
            return
        for processor in self.processors_of(stage).values():
            try:
                check_target(processor)
            except UserError as error:
                raise UserError(f"stages.{stage.name}: {error}") from error

    def check_vocabulary(self) -> None:
        """Refuse a tokenizer with ids that the language model has no embeddings for; this reads the tokenizer's files.

        Raises:
            UserError: an id is too large, or the files cannot be read.
        """
        network = self.network
        if self.processor is None or not isinstance(network, MultimodalModel):
            return
        tokens, rows = self.processor.tokenizer.size, network.language.vocab_size
        if tokens > rows:
            raise UserError(
                f"model.init_args: the tokenizer has {tokens} entries, but the language model has embeddings for "
                f"{rows} (`vocab_size`). Use the tokenizer that belongs to the language model's weights, or, for "
                f"a new language model, set `vocab_size` to at least {tokens}"
            )

    def load_pretrained(self, parts: Collection[str] | None = None) -> None:
        """Load published weights, which constructors never do; see `lit_mm.checkpoints.origins.Origins.load`."""
        self.origins.load(parts)

    # --- stages --------------------------------------------------------------------------------------------------
    def set_adapters(self, adapters: Mapping[str, Adapter], seed: int = 0) -> None:
        """Give the parts these adapters and no others; adapters that they have already stay.

        Args:
            adapters: part -> adapter. A new adapter changes no output. An adapter that is missing here is dropped.
            seed: seed of new adapters, the same on every rank.
        Raises:
            UserError: a part is no child of the network, or has no such linears.
        """
        self.end_adapters({part: "drop" for part, adapter in self.adapters.items() if adapters.get(part) is None})
        modules = self.modules_by_part()
        for part, adapter in adapters.items():
            if part in self.adapters:
                self.adapters[part] = adapter  # `after` may differ
                continue
            if part not in modules:
                raise UserError(f"train.{part}.adapter: an adapter can be put on {sorted(modules)}, got {part!r}")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(stable_hash(seed, part))
                add_adapters(
                    modules[part],
                    adapter_part(part),
                    kind=adapter.type,
                    rank=adapter.rank,
                    alpha=adapter.alpha,
                    dropout=adapter.dropout,
                    targets=adapter.targets,
                )
            self.adapters[part] = adapter
            self.origins.digests.pop(part, None)  # the names of its tensors have changed

    def end_adapters(self, fates: Mapping[str, After]) -> None:
        """Merge or drop adapters; those that are kept stay as they are.

        Args:
            fates: part -> fate of its adapter.
        """
        for part, fate in fates.items():
            if fate == "keep":
                continue
            remove_adapters(self.modules_by_part()[part], adapter_part(part), merge=fate == "merge")
            self.origins.digests.pop(part, None)
            if fate == "merge":
                self.origins.forget(part)
            del self.adapters[part]

    def begin(self, stage: Stage, *, total_steps: int, number: int = 1, first_step: int = 0, seed: int = 0) -> None:
        """Make `stage` the current stage and freeze all parts that it does not train. Call it before `Trainer.fit`.

        Args:
            stage: stage that begins.
            total_steps: optimizer steps of the stage.
            number: number of the stage in the recipe, from 1.
            first_step: optimizer steps of all earlier stages; logs count through all stages.
            seed: seed of the run, which also seeds dropout.
        """
        self.stage, self.stage_number = stage, number
        self.total_steps, self.first_step, self.seed = total_steps, first_step, seed
        apply_stage(self.parts(), stage)
        self._learning = learning_parts(stage, 0)
        self.train()
        self.origins.freeze(stage.train_parts)  # before the strategy, which may shard and round the weights

    @property
    def current_stage(self) -> Stage:
        """The stage that has begun.

        Raises:
            UserError: no stage has begun.
        """
        if self.stage is None:
            raise UserError("no stage has begun. Train the model with a recipe that has `stages:` (lit_mm fit)")
        return self.stage

    @property
    def step(self) -> int:
        """Optimizer steps finished, counted through all stages."""
        return self.first_step + self.trainer.global_step

    def configure_optimizers(self) -> dict:
        stage, total = self.current_stage, self.total_steps
        bounds = bounds_of(self.network)
        groups = parameter_groups(self.parts(), stage, layered(self.modules_by_part()), bounds)
        optimizer = make_optimizer(groups, stage.betas)
        if self._trainer is None or not isinstance(self.trainer.strategy, ZeRO):  # ZeRO's engine replaces the weights
            keep_average(optimizer)
        factors = [
            lambda step, part=group["part"]: stage.schedule.factor(step, total) * (part in learning_parts(stage, step))
            for group in optimizer.param_groups
        ]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # --- steps ---------------------------------------------------------------------------------------------------
    def on_train_batch_start(self, *_: object) -> None:
        """Thaw the parts whose `from_step` is reached.

        A part that has not thawed runs in evaluation mode and, on a single device, without a backward pass. DDP and
        ZeRO still run its backward pass, because their set of reduced parameters is fixed.
        """
        learning, late = learning_parts(self.stage, self.trainer.global_step), late_parts(self.stage)
        if learning != self._learning:
            self._learning = learning
            self.train()
        if not isinstance(self.trainer.strategy, SingleDeviceStrategy):
            return
        if not late or len(late) == len(self.stage.train):  # a backward pass needs a trainable parameter
            return
        parts = self.parts()
        for part in late:
            for parameter in parts[part].values():
                parameter.requires_grad_(part in learning)

    def train(self, mode: bool = True) -> MultimodalModule:
        """Put parts that learn now and the stage's `noisy` parts in training mode, all others in evaluation mode."""
        super().train(mode)
        if mode and self.stage is not None:
            set_modes(self.network, {*self._learning, *self.stage.noisy})
        return self

    def weights_of_objectives(self, stage: Stage) -> dict[str, float]:
        """Return objective -> weight in a stage; a stage without objectives has the family's first with weight 1."""
        return stage.objectives or {next(iter(self.objectives)): 1.0}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the weighted sum of the stage's objectives; gradients do not depend on how a step is split.

        The sum over this micro-batch is divided by the number of units over all ranks and micro-batches. Lightning
        divides by the accumulation and DDP averages over ranks, so the result is multiplied by both.
        """
        if isinstance(batch, Batch):  # batches of pixels alone have no views
            self.check_calls(batch)
        self.seed_step(batch_idx)
        weights = self.weights_of_objectives(self.stage)
        self.begin_step([self.objectives[name] for name in weights])
        with self.trainer.precision_plugin.forward_context():  # again: DeepSpeed's engine has switched autocast off
            losses = {name: self._loss(self.objectives[name], batch) for name in weights}
        loss = sum(weights[name] * losses[name] for name in weights)
        self.micro_losses = {name: value.detach() for name, value in losses.items()}
        self.micro_loss = loss.detach()
        return loss * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def begin_step(self, objectives: Sequence[Objective]) -> None:
        """Give objectives that change over a stage the step, and check that those that compare samples can.

        Raises:
            UserError: an objective compares the samples of a micro-batch, and a step has several micro-batches.
        """
        accumulation = self.trainer.accumulate_grad_batches
        for objective in objectives:
            if isinstance(objective, Comparing) and objective.compares and accumulation > 1:
                raise UserError(
                    f"stages.{self.current_stage.name}: {type(objective).__name__} compares the samples of one "
                    f"forward pass, so gradient accumulation is impossible, but a step has {accumulation} "
                    "micro-batches per rank. Raise `micro_batch`, or lower `global_batch` to one micro-batch per rank"
                )
            if isinstance(objective, Timed):
                objective.step, objective.total_steps = self.trainer.global_step, self.total_steps

    def _loss(self, objective: Objective, batch: Batch) -> Tensor:
        """Return the share of this micro-batch in the step's mean over the objective's unit."""
        return objective(self.network, batch) / batch.units[objective.unit]

    @property
    def loss_by_source(self) -> Tensor | None:
        """[2, number of sources] loss sums and token counts of the last micro-batch; None without next-token loss."""
        predictions = [objective for objective in self.objectives.values() if isinstance(objective, NextToken)]
        return predictions[0].loss_by_source if predictions else None

    def check_calls(self, batch: Batch) -> None:
        """Check that every rank calls the vision encoder equally often; otherwise ranks would wait for each other.

        Raises:
            UserError: there are several ranks, and the encoder takes views of several shapes one shape after the other.
        """
        groups = batch.views.groups if batch.views is not None else ()
        if self.trainer.world_size > 1 and len(groups) > 1 and not self.network.together:
            shapes = [tuple(group.shape[-2:]) for group in groups]
            raise UserError(
                f"samples {list(batch.sample_ids)} have views of the shapes {shapes}. This vision encoder "
                "processes shapes one at a time, so ranks with fewer shapes would hang. Train with one process, "
                "use an encoder that takes all shapes together, or use a tiling with one shape"
            )

    def seed_step(self, batch_idx: int) -> None:
        """Seed dropout from (seed, stage, micro-batch, rank), so that a resumed run repeats the unbroken one."""
        digest = stable_hash(self.seed, self.stage.name if self.stage else "", batch_idx, self.global_rank)
        torch.manual_seed(digest)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Use evaluation mode, no gradients and the trainer's precision in a `with` block; then restore every mode.

        torch's inference mode is not used, since tensors that a model caches in it (rotary tables) cannot be used in
        training.
        """
        modes = {module: module.training for module in self.modules()}
        precision = self._trainer.precision_plugin.forward_context() if self._trainer is not None else nullcontext()
        self.eval()
        try:
            with torch.no_grad(), precision:
                yield
        finally:
            for module, training in modes.items():
                module.training = training

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: object, **__: object) -> None:
        """Clip gradients to the stage's norm. Lightning refuses this for a fused optimizer even in bf16, unscaled."""
        if isinstance(self.trainer.strategy, ZeRO):
            return  # ZeRO's engine clips and thaws, as only it sees the gradients of all ranks
        for group in optimizer.param_groups:
            if group["part"] not in self._learning:
                for parameter in group["params"]:
                    parameter.grad = None  # a part before its thaw gets no moments and does not count in the norm
        if self.stage.clip:
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(trained, self.stage.clip)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add family, config, stage and parts, so that a checkpoint opens without its run folder.

        Parts that this run has not trained are left out if they can be loaded from their origin. The entry `parts`
        lists the parameters of every part, stored or not. See `lit_mm.checkpoints`.
        """
        names = {id(parameter): f"network.{name}" for name, parameter in self._parts.named_parameters()}
        frozen = {
            part: digests
            for part, digests in self.origins.digests.items()
            if part in self.origins.unloaded or not self.save_frozen
        }
        aside = {f"network.{name}": tensor for name, tensor in self._parts.state_aside().items()}
        left_out = {name for digests in frozen.values() for name in digests}
        checkpoint["lit_mm"] = {
            "family": family_of(self),
            "config": self.config_text,
            "stage": self.stage.name if self.stage else "",
            "stage_number": self.stage_number,
            "stage_step": self.trainer.global_step,
            "step": self.step,
            "ends": self.ends,
            "adapters": {part: asdict(adapter) for part, adapter in self.adapters.items()},
            "strategy": type(self.trainer.strategy).__name__,
            "data": self.data_digests,
            "parts": {part: [names[id(p)] for p in parameters.values()] for part, parameters in self.parts().items()},
            "stored": [name for name in (*dict(kept_tensors(self)), *aside) if name not in left_out],
            "frozen": {
                part: {"origin": self.origins.by_part[part], "digests": digests} for part, digests in frozen.items()
            },
        }
        checkpoint["state_dict"] |= aside
        (optimizer,) = self.trainer.optimizers
        strategy = self.trainer.strategy
        whole = strategy.original_groups if isinstance(strategy, ZeRO) else None
        checkpoint["optimizer"] = optimizer_groups(optimizer, names, whole)
        by_name = {names[id(p)]: state for p, state in optimizer.state.items() if id(p) in names}
        checkpoint["optimizer_states"] = [by_name]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Convert a checkpoint's optimizer steps to micro-batches, which Lightning counts, at today's accumulation."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        finished = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        for counts in (progress["total"], progress["current"]):
            shift = finished - counts["ready"]  # a shift keeps the difference between "processed" and "completed"
            counts.update({name: count + shift for name, count in counts.items()})

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device, non_blocking=True)

    @property
    def learning_rates(self) -> Mapping[str, float]:
        """Return part -> highest current learning rate of its groups; an adapter's is listed under its part."""
        bases = {adapter_part(part): part for part in self.adapters}
        rates: dict[str, float] = {}
        for group in self.optimizers().param_groups:
            part = bases.get(group["part"], group["part"])
            rates[part] = max(rates.get(part, 0.0), group["lr"])
        return rates


def family_of(module: MultimodalModule) -> str:
    """Return the shortest import path of a model's class, such as lit_mm.families.Llava15."""
    family = type(module)
    packages = family.__module__.split(".")
    for depth in range(1, len(packages)):
        package = ".".join(packages[:depth])
        if getattr(sys.modules.get(package), family.__name__, None) is family:
            return f"{package}.{family.__name__}"
    return f"{family.__module__}.{family.__qualname__}"
