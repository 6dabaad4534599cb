"""The effects of the arguments of Lightning's Trainer, and of its callbacks, in a recipe. No torch is imported.

The table of `docs/trainer.md` comes from this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Use = Literal["as in Lightning", "different", "refused"]


@dataclass(frozen=True)
class TrainerKey:
    """An argument of the Trainer, or one of Lightning's callbacks.

    Attributes:
        name: name in Lightning.
        use: "as in Lightning" for the effect that Lightning documents, "different" for the effect in `text`, "refused"
            if `text` says what to use instead.
        text: the effect, or what to use instead, as sentences.
    """

    name: str
    use: Use
    text: str


AVERAGES = "It changes frozen parts. Use `average: DECAY` of a part in `train` for a moving average of that part."
ARGUMENTS = (
    TrainerKey(
        "accelerator", "as in Lightning", "Kind of device: cpu, gpu, mps, or auto for the best one of the machine."
    ),
    TrainerKey(
        "strategy", "as in Lightning", "Strategy for several ranks: auto, ddp, zero1, zero2, zero3 or zeroN_offload."
    ),
    TrainerKey("devices", "as in Lightning", "Number of devices per node, or a list of their indices."),
    TrainerKey("num_nodes", "as in Lightning", "Number of nodes."),
    TrainerKey(
        "precision", "different", "As in Lightning, and auto: bf16-mixed if the hardware multiplies bf16, else 32-true."
    ),
    TrainerKey("logger", "refused", "Use `track` to switch W&B on or off. Every step is always logged to metrics.csv."),
    TrainerKey(
        "callbacks", "as in Lightning", "Callbacks in addition to those of the run. Each stage has fresh copies."
    ),
    TrainerKey(
        "fast_dev_run",
        "different",
        "Rehearsal in a temporary folder: one step of every stage, two held-out documents, a save, a load and an "
        "export.",
    ),
    TrainerKey(
        "max_epochs", "refused", "Set the length of a stage with `stages.NAME.epochs` or `stages.NAME.max_steps`."
    ),
    TrainerKey(
        "min_epochs", "refused", "Set the length of a stage with `stages.NAME.epochs` or `stages.NAME.max_steps`."
    ),
    TrainerKey("max_steps", "refused", "Set the length of a stage with `stages.NAME.max_steps`."),
    TrainerKey("min_steps", "refused", "Set the length of a stage with `stages.NAME.max_steps`."),
    TrainerKey(
        "max_time",
        "different",
        "Time limit of a launch. At the limit, a checkpoint is saved after the current step (on several GPUs after the "
        "next) and the command ends with exit code 75. The same command resumes the run.",
    ),
    TrainerKey("limit_train_batches", "refused", "Set the length of a stage with `stages.NAME.max_steps`."),
    TrainerKey("limit_val_batches", "refused", "Set the number of held-out documents with `examine_documents`."),
    TrainerKey("limit_test_batches", "refused", "Set the number of held-out documents with `examine_documents`."),
    TrainerKey("limit_predict_batches", "refused", "Set the number of held-out documents with `examine_documents`."),
    TrainerKey(
        "overfit_batches",
        "refused",
        "Choose a small data set in `data`, and the number of passes with `stages.NAME.epochs`.",
    ),
    TrainerKey("val_check_interval", "refused", "Set the number of steps between examinations with `examine_every`."),
    TrainerKey(
        "check_val_every_n_epoch", "refused", "Set the number of steps between examinations with `examine_every`."
    ),
    TrainerKey("num_sanity_val_steps", "refused", "The model is always examined before its first step."),
    TrainerKey("log_every_n_steps", "refused", "Every optimizer step is always logged."),
    TrainerKey(
        "enable_checkpointing",
        "refused",
        "Checkpoints are always written. Set their number with `checkpoint_every` and `keep_checkpoints`.",
    ),
    TrainerKey("enable_progress_bar", "as in Lightning", "False switches the progress bar off."),
    TrainerKey(
        "enable_model_summary", "as in Lightning", "True prints Lightning's table of modules at the start of a stage."
    ),
    TrainerKey(
        "accumulate_grad_batches",
        "refused",
        "Accumulation is computed from `data.init_args.global_batch` and `data.init_args.micro_batch`.",
    ),
    TrainerKey("gradient_clip_val", "refused", "Set the limit of the gradient norm with `stages.NAME.clip`."),
    TrainerKey(
        "gradient_clip_algorithm",
        "refused",
        "Gradients are clipped by their norm. Set the limit with `stages.NAME.clip`.",
    ),
    TrainerKey(
        "deterministic",
        "as in Lightning",
        "True refuses operations that are not deterministic. Without it, they cause a warning.",
    ),
    TrainerKey("benchmark", "as in Lightning", "True lets cuDNN measure its algorithms."),
    TrainerKey("inference_mode", "refused", "Examinations always run without gradients."),
    TrainerKey("use_distributed_sampler", "refused", "The stream always distributes samples over ranks."),
    TrainerKey(
        "profiler",
        "different",
        "simple, advanced or pytorch. The report of each stage is in `profile/` of the run folder.",
    ),
    TrainerKey(
        "detect_anomaly", "as in Lightning", "True reports the operation whose gradient is nan. Training is slower."
    ),
    TrainerKey("barebones", "refused", "It switches off checkpoints, but a run always writes them."),
    TrainerKey("plugins", "as in Lightning", "Plugins in addition to the one that writes checkpoints."),
    TrainerKey("sync_batchnorm", "as in Lightning", "True synchronises the statistics of batch norms over ranks."),
    TrainerKey("reload_dataloaders_every_n_epochs", "refused", "The stream of samples continues through all epochs."),
    TrainerKey("default_root_dir", "refused", "Set the run folder with `run_dir`."),
    TrainerKey("enable_autolog_hparams", "refused", "The whole config is always saved in the run folder."),
    TrainerKey("model_registry", "refused", "Checkpoints are saved in the run folder. Set it with `run_dir`."),
)

CALLBACKS = (
    TrainerKey("BackboneFinetuning", "refused", "Use `stages.NAME.train.PART.from_step` to thaw a part at a step."),
    TrainerKey("BaseFinetuning", "refused", "Use `stages.NAME.train.PART.from_step` to thaw a part at a step."),
    TrainerKey(
        "BatchSizeFinder", "refused", "Use `describe`, which prints the memory of a micro-batch before anything runs."
    ),
    TrainerKey(
        "DeviceStatsMonitor", "refused", "W&B records the use of devices and memory. Switch it on with `track`."
    ),
    TrainerKey("EMAWeightAveraging", "refused", AVERAGES),
    TrainerKey(
        "EarlyStopping",
        "different",
        "It ends the current stage, and the next stage begins. It checks after every examination, or after every "
        "optimizer step if it monitors a column of metrics.csv.",
    ),
    TrainerKey(
        "GradientAccumulationScheduler",
        "refused",
        "Accumulation is computed from `data.init_args.global_batch` and `data.init_args.micro_batch`.",
    ),
    TrainerKey(
        "LambdaCallback", "as in Lightning", "Its functions must come from this framework or from packages of --allow."
    ),
    TrainerKey("LearningRateFinder", "refused", "Use a sweep over `stages.NAME.train` to compare learning rates."),
    TrainerKey("LearningRateMonitor", "refused", "The learning rate of every part is in metrics.csv and in W&B."),
    TrainerKey(
        "ModelCheckpoint",
        "different",
        "It saves to `model_checkpoints/STAGE` of the run folder, in addition to the run's checkpoints: after "
        "examinations if it monitors an accuracy, else every `every_n_train_steps` or at the end of a stage.",
    ),
    TrainerKey("ModelPruning", "refused", AVERAGES),
    TrainerKey("ModelSummary", "as in Lightning", "Lightning's table of modules."),
    TrainerKey("OnExceptionCheckpoint", "refused", "A failed run resumes from its last checkpoint."),
    TrainerKey("RichModelSummary", "as in Lightning", "Lightning's table of modules, in colour."),
    TrainerKey(
        "RichProgressBar",
        "refused",
        "The run has a progress bar. Switch it on or off with `trainer.enable_progress_bar`.",
    ),
    TrainerKey("SpikeDetection", "refused", "The run always ends at the first loss that is nan or infinite."),
    TrainerKey("StochasticWeightAveraging", "refused", AVERAGES),
    TrainerKey(
        "TQDMProgressBar",
        "refused",
        "The run has a progress bar. Switch it on or off with `trainer.enable_progress_bar`.",
    ),
    TrainerKey("ThroughputMonitor", "refused", "Useful tokens per second are in metrics.csv and in W&B."),
    TrainerKey("Timer", "refused", "Set the time limit of a launch with `trainer.max_time`."),
    TrainerKey("WeightAveraging", "refused", AVERAGES),
)


def document() -> str:
    """Return the page `docs/trainer.md`."""
    rows = {
        title: "\n".join(f"| `{key.name}` | {key.use} | {key.text} |" for key in keys)
        for title, keys in (("arguments", ARGUMENTS), ("callbacks", CALLBACKS))
    }
    return PAGE.format(**rows)


PAGE = """# The Trainer in a recipe

```
python -m lit_mm fit --config experiments/xcomposer2.yaml --trainer.max_time 00:01:00:00
```

`trainer:` in a recipe takes the arguments of Lightning's Trainer. An argument works as in Lightning, has a different
effect, or is refused with the key to use instead. `tests/commands/test_trainer_keys.py` compares this page with
Lightning's signature and with `fit`.

## Arguments

| argument | use | effect, or what to use instead |
|---|---|---|
{arguments}

## Callbacks

`trainer.callbacks` lists callbacks of Lightning. A callback can monitor:

- the columns of metrics.csv (`loss`, `tokens`, `lr_PART`),
- `accuracy/overall` and `accuracy/SKILL`,
- values that your own callback logs in every step with `pl_module.log`. They are written to metrics.csv and W&B, too.

| callback | use | effect, or what to use instead |
|---|---|---|
{callbacks}
"""
