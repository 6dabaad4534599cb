"""ZeRO as a strategy: DeepSpeed's engine on CPUs and GPUs alike. `lit_mm.distributed.names` lists the names.

A strategy of this framework keeps three promises:

- It writes and reads the one kind of checkpoint of `lit_mm.checkpoints.reading`; each rank writes its own pieces.
- Between stages the model is whole: plain fp32 parameters, as if it had just been built and loaded. The next stage
  starts from them on any strategy, so resuming a stage and following another stage are the same thing.
- The ranks agree on a failure to save: every rank raises it, and no rank waits for one that has left.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor, nn

from lit_mm.checkpoints import contents, reading, writing
from lit_mm.checkpoints.writing import Piece
from lit_mm.distributed.cpu import deepspeed_on_cpu
from lit_mm.distributed.shares import Share, shard, whole_shape
from lit_mm.errors import UserError
from lit_mm.layers.activations import compiles_layers
from lit_mm.stages.average import AVERAGE, keep_average
from lit_mm.stages.optimizer import Cut, MuonWithAdamW
from lit_mm.stages.thaw import late_parts, learning_parts

ZERO_STAGE = 2  # default of `ZeRO.stage`
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum", AVERAGE)  # two of AdamW, one of Muon, one of an average


class ZeROPrecision(DeepSpeedPrecision):
    """bf16 under ZeRO: bf16 weights, and autocast, so that norms and softmax are fp32.

    `bf16-mixed` and `bf16-true` are the same here, because the optimizer's masters are fp32 in either case.
    """

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module  # the engine converts it, after `ZeRO.setup` has copied the fp32 weights

    def convert_input(self, data: Any) -> Any:
        return data

    def backward(self, tensor: Tensor, model: L.LightningModule, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        # Lightning has divided by the accumulation already; its own plugin lets the engine divide a second time
        model.trainer.model.backward(tensor, *args, scale_wrt_gas=False, **kwargs)

    def forward_context(self) -> AbstractContextManager:
        if not self.precision.startswith("bf16"):
            return nullcontext()
        from deepspeed.accelerator import get_accelerator

        return torch.autocast(get_accelerator().device_name(), dtype=torch.bfloat16)


class ZeRO(DeepSpeedStrategy):
    """DeepSpeed's engine with ZeRO stage 1, 2 or 3, on GPUs over NCCL and on CPUs over gloo.

    Stage 1 shards the optimizer state, stage 2 also the gradients, stage 3 also the parameters, frozen ones included.
    With precision bf16-mixed or bf16-true the weights are bf16 and the optimizer's masters fp32.

    Muon needs whole matrices, so every rank assembles each of them in every step. A part with `from_step` gives zero
    gradients before that step, and the optimizer skips its group, so it has no moments and no share in the norm.

    Args:
        stage: ZeRO stage, 1 to 3.
        offload_optimizer: True keeps masters and moments in the CPU's memory, where they are updated.
        offload_parameters: True keeps parameters in the CPU's memory while no layer needs them; stage 3 only.
        keep_whole: size of the largest parameter that stays whole on every rank, which saves messages; elements, stage
            3 only.
        bucket: size of the largest message, elements. The buffer of gradients to reduce has this size, or that of all
            trainable parameters of the stage if these are fewer.
        overlap_comm: True reduces and gathers while the backward pass computes, below stage 3 with a second buffer of
            gradients. None: True under stage 3, else False.
        timeout_minutes: longest wait of one rank for another.
    Raises:
        UserError: the stage is none of 1 to 3, or parameters are offloaded below stage 3.
    """

    def __init__(
        self,
        stage: int = ZERO_STAGE,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        keep_whole: int = 100_000,
        bucket: int = 200_000_000,
        timeout_minutes: float = default_pg_timeout.total_seconds() / 60,
        overlap_comm: bool | None = None,
    ) -> None:
        if stage not in (1, 2, 3):
            raise UserError(f"ZeRO has the stages 1, 2 and 3, got {stage}")
        if offload_parameters and stage < 3:
            raise UserError(f"ZeRO-{stage} keeps all parameters on every device. To offload them, use stage 3")
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed wonders aloud that it found no GPU
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,  # DeepSpeed only logs it; Lightning's guess fails for packed rows
            "zero_allow_untested_optimizer": True,
            # torch's AdamW on the CPU as on the GPU: DeepSpeed's own is compiled on first use, and rounds differently
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {
                "stage": stage,
                "contiguous_gradients": True,
                "overlap_comm": stage == 3 if overlap_comm is None else overlap_comm,
                "reduce_bucket_size": bucket,
                "allgather_bucket_size": bucket,
                "stage3_prefetch_bucket_size": bucket // 4,
                "stage3_param_persistence_threshold": keep_whole,
                "offload_optimizer": {"device": "cpu" if offload_optimizer else "none"},
                "offload_param": {"device": "cpu" if offload_parameters else "none"},
            },
        }
        super().__init__(config=config, timeout=timedelta(minutes=timeout_minutes))
        self.stage, self.bucket = stage, bucket
        self.original_groups: list[list[nn.Parameter]] = []  # the optimizer's groups before DeepSpeed replaces them
        self._exact: dict[str, Tensor] = {}  # fp32 values of parameters that bf16 cannot hold

    # --- CPUs as well ---------------------------------------------------------------------------------------------
    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0) if self._on_cpu else super().root_device

    @property
    def _on_cpu(self) -> bool:
        return self.parallel_devices is None or self.parallel_devices[0].type == "cpu"

    def setup_environment(self) -> None:
        if self._on_cpu:
            deepspeed_on_cpu()
        self.accelerator.setup_device(self.root_device)
        self.setup_distributed()

    def setup_distributed(self) -> None:
        reset_seed()
        self.set_world_ranks()
        self._process_group_backend = "gloo" if self._on_cpu else "nccl"
        self._init_deepspeed_distributed()

    # --- start of a stage -----------------------------------------------------------------------------------------
    def setup(self, trainer: L.Trainer) -> None:
        precision = self.precision_plugin.precision
        self.precision_plugin = ZeROPrecision(precision)
        check_zero_precision(precision)
        module = self.lightning_module
        check_zero_layers(self.stage, module)
        stage = module.stage
        if "gradient_clipping" not in self.config:
            self.config["gradient_clipping"] = stage.clip
        if precision.startswith("bf16"):
            # Stage 1 with fp32 accumulation would be another engine class, with another bookkeeping
            self.config["data_types"] = {"grad_accum_dtype": "fp32" if self.stage > 1 else "bf16"}
            self.config["bf16"] = {"enabled": True}
        learnt = sum(whole_shape(p).numel() for p in module.parameters() if p.requires_grad)
        self.config["zero_optimization"]["reduce_bucket_size"] = min(self.bucket, learnt)
        whole = {name: p.data for name, p in module.named_parameters()} if precision.startswith("bf16") else {}
        super().setup(trainer)
        if whole:
            self._keep_exact(whole)
        if self.optimizers and isinstance(self.engine_optimizer.optimizer, MuonWithAdamW):
            muon = self.engine_optimizer.optimizer.muon
            muon.cuts, muon.add_up = self._cuts(), self._sum
        self._wait_until_thawed()
        if self.optimizers:
            keep_average(self.engine_optimizer.optimizer)

    def _setup_model_and_optimizer(self, model: nn.Module, optimizer: Any, lr_scheduler: Any = None) -> Any:
        self.original_groups = [list(group["params"]) for group in optimizer.param_groups]
        return super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)

    def _keep_exact(self, whole: Mapping[str, Tensor]) -> None:
        """Copy the fp32 values into the masters, which DeepSpeed made of bf16; keep frozen values that bf16 rounds."""
        for share in self.shares():
            share.of(share.flat).copy_(whole[share.name].flatten().narrow(0, share.start, share.count))
        trained = {name for name, p in self.lightning_module.named_parameters() if p.requires_grad}
        self._exact = {
            name: tensor
            for name, tensor in whole.items()
            if name not in trained and not torch.equal(tensor, tensor.bfloat16().to(tensor.dtype))
        }

    def _wait_until_thawed(self) -> None:
        """Keep parts out of gradients, norm and moments before their `from_step`, as `MultimodalModule` does."""
        module = self.lightning_module
        late = late_parts(module.stage)
        if not late or not self.optimizers:
            return
        trainer = module.trainer

        def learns(part: str) -> bool:
            return part in learning_parts(module.stage, trainer.global_step)

        def silent(part: str) -> Callable[[Tensor], Tensor]:
            return lambda gradient: gradient if learns(part) else torch.zeros_like(gradient)

        parts = module.parts()
        self._silencers = [p.register_hook(silent(part)) for part in late for p in parts[part].values()]
        gradients: dict[Tensor, Tensor | None] = {}

        def hide_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:
                if not learns(group["part"]):
                    for flat in group["params"]:
                        gradients[flat], flat.grad = flat.grad, None

        def restore_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for flat, gradient in gradients.items():
                flat.grad = gradient  # with offload it is a buffer that the engine uses again
            gradients.clear()

        optimizer = self.engine_optimizer.optimizer
        optimizer.register_step_pre_hook(hide_gradients)
        optimizer.register_step_post_hook(restore_gradients)

    # --- what this rank holds -------------------------------------------------------------------------------------
    @property
    def engine_optimizer(self) -> Any:
        """DeepSpeed's wrapper of the stage's optimizer, which is its attribute `optimizer`."""
        return self.optimizers[0]

    def shares(self) -> Iterator[Share]:
        """Return this rank's shares of the trainable parameters, in the order of the model's parameters."""
        zero = self.engine_optimizer
        for name, parameter in self.lightning_module.named_parameters():
            if not parameter.requires_grad or not whole_shape(parameter).numel():
                continue
            if self.stage == 3:
                group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
                start, count = shard(parameter)
                if count:
                    yield Share(name, start, count, zero.fp32_partitioned_groups_flat[group], offset)
            elif parameter._hp_mapping is not None:
                mapping = parameter._hp_mapping
                low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
                flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
                yield Share(name, low.start, low.numel, flat, high.start)

    def _cuts(self) -> dict[Tensor, list[Cut]]:
        """Return flat tensor -> the matrices that ZeRO has cut into it, in the order of its group."""
        zero, shares = self.engine_optimizer, {share.name: share for share in self.shares()}
        names = {id(parameter): name for name, parameter in self.lightning_module.named_parameters()}
        cuts: dict[Tensor, list[Cut]] = {}
        for number, parameters in enumerate(self.original_groups):
            if not zero.optimizer.param_groups[number]["muon"]:
                continue
            for parameter in parameters:
                if self.stage == 3:
                    flat = zero.fp32_partitioned_groups_flat[zero.grad_position[zero.get_param_id(parameter)][0]]
                else:
                    flat = zero.single_partition_of_fp32_groups[number]
                share = shares.get(names[id(parameter)])
                place = (share.start, share.count, share.offset) if share else ()
                cuts.setdefault(flat, []).append(Cut(whole_shape(parameter), *place))
        return cuts

    def _sum(self, pieces: Tensor) -> Tensor:
        """Sum a tensor over the ranks."""
        total = pieces.to(self.root_device)
        dist.all_reduce(total)
        return total.to(pieces.device)

    def _frozen_pieces(self, names: set[str]) -> Iterator[Piece]:
        """Return the frozen pieces that this rank saves: its shards under ZeRO-3, else every n-th parameter whole."""
        frozen = [(n, p) for n, p in self.lightning_module.named_parameters() if not p.requires_grad and n in names]
        for number, (name, parameter) in enumerate(frozen):
            shape = tuple(whole_shape(parameter))
            by_this_rank = number % self.world_size == self.global_rank
            if self.stage < 3 or name in self._exact:
                if by_this_rank:
                    yield Piece(name, shape, 0, self._exact.get(name, parameter.detach().float()).flatten())
                continue
            start, count = shard(parameter)
            if count:
                yield Piece(name, shape, start, parameter.ds_tensor.detach().flatten()[:count].float())

    # --- checkpoints ----------------------------------------------------------------------------------------------
    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {}  # see `save_checkpoint`

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        optimizer = self.engine_optimizer.optimizer
        stored = set(checkpoint["lit_mm"]["stored"])
        shapes = {n: tuple(whole_shape(p)) for n, p in self.lightning_module.named_parameters()}

        def weights() -> Iterator[Piece]:
            for share in self.shares():
                yield Piece(share.name, shapes[share.name], share.start, share.of(share.flat))
            yield from self._frozen_pieces(stored)
            if self.is_global_zero:
                for name, buffer in contents.kept_buffers(self.lightning_module):
                    yield Piece(name, tuple(buffer.shape), 0, buffer.flatten())
                for name, tensor in checkpoint["state_dict"].items():  # parts that this stage does not read
                    if name in stored:
                        yield Piece(name, tuple(tensor.shape), 0, tensor.detach().flatten())

        def moments() -> Iterator[tuple[str, Piece]]:
            for share in self.shares():
                state = optimizer.state.get(share.flat, {})
                for key in MOMENTS:
                    if key in state:
                        yield key, Piece(share.name, shapes[share.name], share.start, share.of(state[key]))

        states = {share.name: optimizer.state.get(share.flat, {}) for share in self.shares()}
        steps = {name: float(state["step"]) for name, state in states.items() if "step" in state}
        content = {k: v for k, v in checkpoint.items() if k not in ("state_dict", "optimizer_states")}
        writing.publish_pieces(content, filepath, weights(), moments(), steps)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        saved = reading.read(Path(checkpoint_path))
        return {**saved.state, "state_dict": {}, "optimizer_states": [], "saved": saved}

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Do nothing: `run_stages` has loaded the weights into the whole model, before the engine shards it."""

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        saved: reading.Checkpoint = checkpoint["saved"]
        optimizer = self.engine_optimizer.optimizer
        for group, saved_group in zip(optimizer.param_groups, checkpoint["optimizer"]["groups"], strict=True):
            group["lr"] = saved_group["lr"]  # the schedule sets it after a step, not when it is restored
        for share in self.shares():
            step, moments = saved.optimizer_step(share.name), saved.moments_of(share.name)
            if not moments:
                continue
            state = optimizer.state[share.flat]
            if not state:
                state.update({key: torch.zeros_like(share.flat.detach()) for key in moments})
                if step is not None:
                    state["step"] = torch.tensor(step, dtype=torch.float32, device=share.flat.device)
            elif step is not None and float(state["step"]) != step:
                raise UserError(
                    f"{str(saved.path)!r}: parameter {share.name!r} was updated {step:g} times, but others of its "
                    f"group {float(state['step']):g} times. ZeRO has one count for a group. Resume with "
                    "`trainer.strategy: ddp`"
                )
            for key in moments:
                share.of(state[key]).copy_(saved.moment(key, share.name, share.start, share.count))

    # --- end of a stage -------------------------------------------------------------------------------------------
    def teardown(self) -> None:
        module = self.lightning_module
        if module is not None and self.optimizers and module.trainer.state.status == TrainerStatus.RUNNING:
            self._make_whole(module)
        self.optimizers = []
        super().teardown()

    def _make_whole(self, module: L.LightningModule) -> None:
        """Replace the engine's shards by whole fp32 parameters on the CPU, on every rank."""
        shares = {share.name: share for share in self.shares()}
        whole: dict[str, Tensor] = {}
        for name, parameter in module.named_parameters():
            shape = tuple(whole_shape(parameter))
            if parameter.requires_grad:
                share = shares.get(name)
                piece = (share.start, share.of(share.flat)) if share else None
            elif name in self._exact:
                whole[name] = self._exact[name].cpu()
                continue
            elif self.stage == 3:
                start, count = shard(parameter)
                piece = (start, parameter.ds_tensor.detach().flatten()[:count].float()) if count else None
            else:
                whole[name] = parameter.detach().float().cpu().clone()
                continue
            whole[name] = self._assemble(shape, piece)
        engine = self.model
        engine.destroy()
        fresh: dict[int, nn.Parameter] = {}
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        for part in module.modules():
            parameters: dict[str, nn.Parameter | None] = {}
            for key, parameter in part._parameters.items():
                if parameter is not None and id(parameter) not in fresh:
                    tensor = whole.pop(names[id(parameter)])
                    fresh[id(parameter)] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
                parameters[key] = None if parameter is None else fresh[id(parameter)]
            part._parameters = parameters
            for attribute in [a for a in vars(part) if a.startswith("ds_") or a in ENGINE_ATTRIBUTES]:
                delattr(part, attribute)
        self._exact = {}
        self.model = module

    def _assemble(self, shape: tuple[int, ...], piece: tuple[int, Tensor] | None) -> Tensor:
        """Assemble a tensor of which every rank has a piece. The sum is one of bits, so that -0.0 stays -0.0."""
        bits = torch.zeros(math.prod(shape), dtype=torch.int32, device=self.root_device)
        if piece is not None:
            start, tensor = piece
            bits[start : start + tensor.numel()] = tensor.to(bits.device).contiguous().view(torch.int32)
        dist.all_reduce(bits)
        return bits.view(torch.float32).view(shape).cpu()


# Attributes that ZeRO-3 leaves on modules beside ds_...; the next stage's engine would call the old functions
ENGINE_ATTRIBUTES = (
    "_original_parameters",
    "_external_params",
    "all_parameters",
    "pre_bwd_fn",
    "post_bwd_fn",
    "applied_pre_backward_ref_cnt",
)


def check_zero_layers(stage: int, module: nn.Module) -> None:
    """Refuse compiled layers under stage 3, which gathers parameters in Python as each module begins.

    Raises:
        UserError: a layer is compiled under stage 3.
    """
    if stage == 3 and compiles_layers(module):
        raise UserError(
            "ZeRO-3 gathers the parameters of each module when it runs, which compiled layers do not "
            "support. Set `compile: false` for the parts of the model, or use zero2 or ddp"
        )


def check_zero_precision(precision: str) -> None:
    """Refuse a precision that scales the loss, or that DeepSpeed does not have.

    Raises:
        UserError: the precision is none of bf16-mixed, bf16-true and 32-true.
    """
    if precision not in ("bf16-mixed", "bf16-true", "32-true"):
        why = "scales the loss" if precision.startswith("16") else "is unknown to DeepSpeed"
        raise UserError(f"trainer.precision {precision} {why}; under ZeRO take bf16-mixed or 32-true")
