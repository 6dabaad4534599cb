"""The base LightningModule: thin. A family's constructor composes network and processor; nothing extends a family."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from lit_mm.checkpoints.contents import kept_tensors
from lit_mm.checkpoints.origins import Origins
from lit_mm.checkpoints.writing import optimizer_groups
from lit_mm.combination.declared import require_parts
from lit_mm.combination.legal import IN_A_FAMILY, Part
from lit_mm.distributed.zero import ZeRO
from lit_mm.documents.document import Document
from lit_mm.documents.examination import Examination
from lit_mm.errors import UserError
from lit_mm.model import MultimodalModel
from lit_mm.objectives.next_token import NextToken
from lit_mm.objectives.objective import Objective
from lit_mm.samples.batch import Batch
from lit_mm.samples.processor import Processor
from lit_mm.stages.groups import layered, parameter_groups
from lit_mm.stages.optimizer import make_optimizer
from lit_mm.stages.parts import Parts
from lit_mm.stages.stage import Stage, apply_stage, check_recipe
from lit_mm.stages.thaw import late_parts, learning_parts, set_modes
from lit_mm.stream.order import stable_hash


class Examiner(Protocol):
    """Examines a model on held-out documents. A family sets its own as `MultimodalModule.examiner`."""

    def __call__(
        self, module: MultimodalModule, documents: Sequence[Document], *, blind: bool = False, batch_size: int = 64
    ) -> Examination:
        """Called on every rank of a job; each gets the whole examination.

        Args:
            module: model to examine.
            documents: each ends in an answer that the model is not shown.
            blind: show pictures of other documents, which tells what the model knows without seeing; see
                `lit_mm.evaluation.examiners.without_sight`.
            batch_size: documents examined together.
        """
        ...


class MultimodalModule(L.LightningModule):
    """Trains a network stage by stage.

    Args:
        network: the parts and their forward.
        processor: makes the owner of the token count, which data modules ask for samples and `describe` for lengths.
            Called at once where images are read; a published tokenizer's files are only read when they are needed.
        free: the parts that the family lets a recipe choose.
        objectives: name -> objective that a stage may weigh; the first is the one of a stage that names none. None:
            next-token prediction, "next_token".
    Raises:
        UserError: parts that do not go together, with the nearest that do; see `lit_mm.combination.legal`.
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
        self.examiner: Examiner | None = None  # None: answers are compared
        self.micro_losses: dict[str, Tensor] = {}  # objective -> its share of the step's loss, of the last micro-batch
        self.free = free
        self.stage_names: frozenset[str] = frozenset()  # stages that arguments of the constructor name
        self.strict_loading = False  # of a Trainer that resumes: `run_stages` has loaded the weights, and checked them
        self._make_processor = processor
        self.stage: Stage | None = None
        self.stage_number = 1
        self.total_steps = 0  # optimizer steps of the current stage
        self.first_step = 0  # optimizer steps of the stages before it
        self.seed = 0
        self._learning: frozenset[str] = frozenset()  # parts that the current optimizer step changes
        self.data_digests: dict[str, Any] = {}  # source of the stage -> digest of its files; on rank 0
        self.data_changes: dict[str, str] = {}  # source -> its difference from the resumed checkpoint
        self.ends: dict[str, dict[str, Any]] = {}  # stage that a callback ended early -> step, planned steps, reason
        self.config_text = ""  # the resolved config, kept in checkpoints
        self.save_frozen = False  # keep parts in checkpoints that can be loaded from their origin
        self._parts = Parts(network)
        self.origins = Origins(self._parts)
        if isinstance(network, MultimodalModel) and network.vision is not None:
            self._require_parts(self.processor, "model.init_args")

    def _require_parts(self, processor: Processor, key: str) -> None:
        """Refuse a processor that does not go with the parts of a model that reads images."""
        network = self.network
        if isinstance(network, MultimodalModel) and network.vision is not None:
            require_parts(network.vision, network.connector, processor, self.free, key)

    @cached_property
    def processor(self) -> Processor:
        return self._make_processor()

    def processors_of(self, stage: Stage) -> dict[int, Processor]:
        """Optimizer step of a stage -> the processor of its training documents from that step on; it begins with 0.

        Raises:
            UserError: inputs of the stage that do not go with the parts of the model.
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
        """The processor of a stage's training documents at its first step; see `processors_of`."""
        return self.processors_of(stage).get(0)

    # --- parts ---------------------------------------------------------------------------------------------------
    def modules_by_part(self) -> dict[str, nn.Module]:
        """Part -> child of the network; see `lit_mm.stages.parts.Parts.modules`."""
        return self._parts.modules()

    def part_of(self, parameter: str) -> str:
        """The part that a parameter belongs to, from its name in the network; see `lit_mm.stages.parts.Parts`."""
        return self._parts.part_of(parameter)

    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        """Part -> its parameters by name (relative to the part). Disjoint, and together all parameters."""
        return self._parts.parameters()

    def parts_read(self, stage: Stage) -> frozenset[str]:
        """The parts that the objectives of a stage read, with those in one child of the network with them.

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
                f"stages.{stage.name}.train names {unread}, which none of the objectives {sorted(objectives)} reads: "
                "they would learn nothing. Take them out, or weigh an objective that reads them"
            )
        return read

    def reading_only(self, stage: Stage) -> AbstractContextManager[None]:
        """Meanwhile the parts that a stage does not read are out of the network; see `lit_mm.stages.parts.Parts`."""
        return self._parts.only(self.parts_read(stage))

    def check_recipe(self, stages: list[Stage]) -> None:
        """Refuse stages that this model cannot run.

        Raises:
            UserError: see `lit_mm.stages.stage.check_recipe` and `parts_read`.
        """
        check_recipe(stages, self.parts(), self.objectives)
        for stage in stages:
            self.parts_read(stage)

    def load_pretrained(self, parts: Collection[str] | None = None) -> None:
        """Load published weights; see `lit_mm.checkpoints.origins.Origins.load`. Constructors never do."""
        self.origins.load(parts)

    # --- stages --------------------------------------------------------------------------------------------------
    def begin(self, stage: Stage, *, total_steps: int, number: int = 1, first_step: int = 0, seed: int = 0) -> None:
        """Make `stage` the current one: what it does not name is frozen. Called before each stage's Trainer.fit.

        Args:
            number: of the stage in the recipe, from 1.
            total_steps: optimizer steps of the stage.
            first_step: optimizer steps of the stages before it; logs count through all stages.
            seed: of the run; dropout is drawn from it.
        """
        self.stage, self.stage_number = stage, number
        self.total_steps, self.first_step, self.seed = total_steps, first_step, seed
        apply_stage(self.parts(), stage)
        self._learning = learning_parts(stage, 0)
        self.train()
        self.origins.freeze(stage.train)  # now: a strategy may shard and round the weights

    @property
    def current_stage(self) -> Stage:
        """The stage that has begun.

        Raises:
            UserError: no stage has begun.
        """
        if self.stage is None:
            raise UserError("no stage has begun: the model is trained by a recipe with `stages:` (lit_mm fit)")
        return self.stage

    @property
    def step(self) -> int:
        """Optimizer steps finished, counted through all stages."""
        return self.first_step + self.trainer.global_step

    def configure_optimizers(self) -> dict:
        stage, total = self.current_stage, self.total_steps
        groups = parameter_groups(self.parts(), stage, layered(self.modules_by_part()))
        optimizer = make_optimizer(groups, stage.betas)
        factors = [
            lambda step, part=group["part"]: stage.schedule.factor(step, total) * (part in learning_parts(stage, step))
            for group in optimizer.param_groups
        ]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # --- steps ---------------------------------------------------------------------------------------------------
    def on_train_batch_start(self, *_: object) -> None:
        """Thaw the parts whose step has come.

        A part that has not thawed runs in evaluation mode and, on a single device, without a backward pass. DDP and
        ZeRO run it: what they reduce is settled.
        """
        learning, late = learning_parts(self.stage, self.trainer.global_step), late_parts(self.stage)
        if learning != self._learning:
            self._learning = learning
            self.train()
        if not isinstance(self.trainer.strategy, SingleDeviceStrategy):
            return
        if not late or len(late) == len(self.stage.train):  # of nothing there is no backward pass
            return
        parts = self.parts()
        for part in late:
            for parameter in parts[part].values():
                parameter.requires_grad_(part in learning)

    def train(self, mode: bool = True) -> MultimodalModule:
        """Training mode for the parts that learn now and for the stage's `noisy` ones; frozen parts stay as they are
        examined.
        """
        super().train(mode)
        if mode and self.stage is not None:
            set_modes(self.network, {*self._learning, *self.stage.noisy})
        return self

    def weights_of_objectives(self, stage: Stage) -> dict[str, float]:
        """Objective -> its weight in a stage; the family's first objective where the stage names none."""
        return stage.objectives or {next(iter(self.objectives)): 1.0}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted sum of the stage's objectives, whatever the split of the optimizer step.

        The sum over this micro-batch is divided by the number of units over all ranks and micro-batches; Lightning
        divides by the accumulation and DDP averages over ranks, so both are multiplied back.
        """
        if isinstance(batch, Batch):  # batches of pixels alone have no views
            self.check_calls(batch)
        self.seed_step(batch_idx)
        weights = self.weights_of_objectives(self.stage)
        with self.trainer.precision_plugin.forward_context():  # again: DeepSpeed's engine switches autocast off
            losses = {name: self._loss(self.objectives[name], batch) for name in weights}
        loss = sum(weights[name] * losses[name] for name in weights)
        self.micro_losses = {name: value.detach() for name, value in losses.items()}
        self.micro_loss = loss.detach()
        return loss * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def _loss(self, objective: Objective, batch: Batch) -> Tensor:
        """The share of this micro-batch in the step's mean over the objective's unit."""
        return objective(self.network, batch) / batch.units[objective.unit]

    @property
    def loss_by_source(self) -> Tensor | None:
        """[2, number of sources] loss sum and tokens of the last micro-batch; None where no objective keeps them."""
        predictions = [objective for objective in self.objectives.values() if isinstance(objective, NextToken)]
        return predictions[0].loss_by_source if predictions else None

    def check_calls(self, batch: Batch) -> None:
        """Every rank must call the encoder as often as the others, whatever its images: else they wait for each other.

        Raises:
            UserError: views of several shapes would be encoded one shape after the other, on one of several ranks.
        """
        groups = batch.views.groups if batch.views is not None else ()
        if self.trainer.world_size > 1 and len(groups) > 1 and not self.network.together:
            shapes = [tuple(group.shape[-2:]) for group in groups]
            raise UserError(
                f"samples {list(batch.sample_ids)} have views of the shapes {shapes}, which this vision encoder takes "
                "one after the other; another rank may have fewer, and the ranks would wait for each other. Train with "
                "one process, or choose an encoder that takes all shapes together, or a tiling with one shape"
            )

    def seed_step(self, batch_idx: int) -> None:
        """Dropout is a function of (seed, stage, micro-batch, rank): a resumed run draws what the unbroken one drew."""
        digest = stable_hash(self.seed, self.stage.name if self.stage else "", batch_idx, self.global_rank)
        torch.manual_seed(digest)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Evaluation mode, no gradients, the trainer's precision; afterwards every module's mode is as it was.

        Not torch's inference mode: what a model caches then (rotary tables) could not be used in training again.
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
        """Clip by the stage's norm. Lightning refuses to for a fused optimizer in bf16, though nothing is unscaled."""
        if isinstance(self.trainer.strategy, ZeRO):
            return  # ZeRO does both: only the engine sees the gradients of all ranks
        for group in optimizer.param_groups:
            if group["part"] not in self._learning:
                for parameter in group["params"]:
                    parameter.grad = None  # not thawed yet: no moments, and no share in the norm of the others
        if self.stage.clip:
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(trained, self.stage.clip)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint says what made it, so that it can be opened without its run folder (see `lit_mm.checkpoints`).

        Parts that nothing in this run has trained are left out, where they can be loaded again. `parts` names the
        parameters of every part, stored or not.
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
        """Lightning counts micro-batches, the stream optimizer steps: a resumed stage may be split differently."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        finished = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        for counts in (progress["total"], progress["current"]):
            shift = finished - counts["ready"]  # what it saved between "processed" and "completed" stays apart
            counts.update({name: count + shift for name, count in counts.items()})

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device, non_blocking=True)

    @property
    def learning_rates(self) -> Mapping[str, float]:
        """Part -> highest current learning rate of its groups."""
        rates: dict[str, float] = {}
        for group in self.optimizers().param_groups:
            rates[group["part"]] = max(rates.get(group["part"], 0.0), group["lr"])
        return rates


def family_of(module: MultimodalModule) -> str:
    """The public import path of a model's class: the shortest one, such as lit_mm.families.Llava15."""
    family = type(module)
    packages = family.__module__.split(".")
    for depth in range(1, len(packages)):
        package = ".".join(packages[:depth])
        if getattr(sys.modules.get(package), family.__name__, None) is family:
            return f"{package}.{family.__name__}"
    return f"{family.__module__}.{family.__qualname__}"
