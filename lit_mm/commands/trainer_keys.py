"""The effects of the arguments of Lightning's Trainer, and of its callbacks, in a recipe. No torch is imported.

The table of `docs/trainer.md` comes from this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Use = Literal["honoured", "means", "refused"]


@dataclass(frozen=True)
class TrainerKey:
    """An argument of the Trainer, or one of Lightning's callbacks.

    Attributes:
        name: name in Lightning.
        use: "honoured" for the effect that Lightning documents, "means" for the effect in `text`, "refused" if `text`
            has the key to use instead.
        text: the effect, as sentences.
    """

    name: str
    use: Use
    text: str


AVERAGES = "It changes frozen parts. `average: DECAY` of a part in `train` keeps a moving average of that part."
ARGUMENTS = (
    TrainerKey("accelerator", "honoured", "The kind of device: cpu, gpu, mps, or auto for the best of the machine."),
    TrainerKey("strategy", "honoured", "How ranks share the work: auto, ddp, zero1, zero2, zero3 and zeroN_offload."),
    TrainerKey("devices", "honoured", "The number of devices of a node, or a list of their numbers."),
    TrainerKey("num_nodes", "honoured", "The number of nodes."),
    TrainerKey(
        "precision", "means", "As in Lightning, and auto: bf16-mixed where the hardware multiplies in it, else 32-true."
    ),
    TrainerKey("logger", "refused", "W&B is switched by `track`; every step is in metrics.csv in any case."),
    TrainerKey("callbacks", "honoured", "Callbacks beside those of the run; each stage has fresh copies of them."),
    TrainerKey(
        "fast_dev_run",
        "means",
        "A rehearsal in a temporary folder: one step of every stage, two held-out documents, a save, a load and "
        "an export.",
    ),
    TrainerKey("max_epochs", "refused", "The length of a stage is `stages.NAME.epochs` or `stages.NAME.max_steps`."),
    TrainerKey("min_epochs", "refused", "The length of a stage is `stages.NAME.epochs` or `stages.NAME.max_steps`."),
    TrainerKey("max_steps", "refused", "The length of a stage is `stages.NAME.max_steps`."),
    TrainerKey("min_steps", "refused", "The length of a stage is `stages.NAME.max_steps`."),
    TrainerKey(
        "max_time",
        "means",
        "The time of a launch. When it is over, the step that is being computed (on several GPUs the next) is saved "
        "and the command ends with exit code 75; the same command goes on.",
    ),
    TrainerKey("limit_train_batches", "refused", "The length of a stage is `stages.NAME.max_steps`."),
    TrainerKey("limit_val_batches", "refused", "The number of held-out documents is `examine_documents`."),
    TrainerKey("limit_test_batches", "refused", "The number of held-out documents is `examine_documents`."),
    TrainerKey("limit_predict_batches", "refused", "The number of held-out documents is `examine_documents`."),
    TrainerKey(
        "overfit_batches", "refused", "A small data set is an argument of `data`, and its passes `stages.NAME.epochs`."
    ),
    TrainerKey("val_check_interval", "refused", "The steps between examinations are `examine_every`."),
    TrainerKey("check_val_every_n_epoch", "refused", "The steps between examinations are `examine_every`."),
    TrainerKey("num_sanity_val_steps", "refused", "The model is examined before its first step in any case."),
    TrainerKey("log_every_n_steps", "refused", "Every optimizer step is logged."),
    TrainerKey(
        "enable_checkpointing",
        "refused",
        "Checkpoints are always written; `checkpoint_every` and `keep_checkpoints` say how many.",
    ),
    TrainerKey("enable_progress_bar", "honoured", "False switches the progress bar off."),
    TrainerKey("enable_model_summary", "honoured", "True prints Lightning's table of modules at the start of a stage."),
    TrainerKey(
        "accumulate_grad_batches",
        "refused",
        "Accumulation follows from `data.init_args.global_batch` and `data.init_args.micro_batch`.",
    ),
    TrainerKey("gradient_clip_val", "refused", "The limit of the gradient norm is `stages.NAME.clip`."),
    TrainerKey("gradient_clip_algorithm", "refused", "Gradients are limited by their norm, with `stages.NAME.clip`."),
    TrainerKey(
        "deterministic", "honoured", "True refuses operations that are not deterministic; left out, they are warned of."
    ),
    TrainerKey("benchmark", "honoured", "True lets cuDNN measure its algorithms."),
    TrainerKey("inference_mode", "refused", "Examinations run without gradients in any case."),
    TrainerKey("use_distributed_sampler", "refused", "The stream of samples is shared out over ranks in any case."),
    TrainerKey(
        "profiler", "means", "simple, advanced or pytorch; the report of each stage is in the run folder's `profile/`."
    ),
    TrainerKey("detect_anomaly", "honoured", "True finds the operation whose gradient is no number, slowly."),
    TrainerKey("barebones", "refused", "It switches off checkpoints, which a run always writes."),
    TrainerKey("plugins", "honoured", "Plugins beside the one that writes checkpoints."),
    TrainerKey("sync_batchnorm", "honoured", "True shares the statistics of batch norms over ranks."),
    TrainerKey("reload_dataloaders_every_n_epochs", "refused", "The stream of samples goes on through epochs."),
    TrainerKey("default_root_dir", "refused", "The run folder is `run_dir`."),
    TrainerKey("enable_autolog_hparams", "refused", "The whole config is kept in the run folder in any case."),
    TrainerKey("model_registry", "refused", "Checkpoints are in the run folder, `run_dir`."),
)

CALLBACKS = (
    TrainerKey("BackboneFinetuning", "refused", "Parts thaw on a schedule with `stages.NAME.train.PART.from_step`."),
    TrainerKey("BaseFinetuning", "refused", "Parts thaw on a schedule with `stages.NAME.train.PART.from_step`."),
    TrainerKey("BatchSizeFinder", "refused", "`describe` gives the memory of a micro-batch before anything runs."),
    TrainerKey("DeviceStatsMonitor", "refused", "W&B records the use of devices and memory by itself, with `track`."),
    TrainerKey("EMAWeightAveraging", "refused", AVERAGES),
    TrainerKey(
        "EarlyStopping",
        "means",
        "It finishes its stage, and the next stage begins. It checks after every examination, or after every optimizer "
        "step if it monitors a column of metrics.csv.",
    ),
    TrainerKey(
        "GradientAccumulationScheduler",
        "refused",
        "Accumulation follows from `data.init_args.global_batch` and `data.init_args.micro_batch`.",
    ),
    TrainerKey("LambdaCallback", "honoured", "Its functions are of this framework or of packages of --allow."),
    TrainerKey("LearningRateFinder", "refused", "Learning rates are compared by a sweep over `stages.NAME.train`."),
    TrainerKey("LearningRateMonitor", "refused", "The learning rate of every part is in metrics.csv and in W&B."),
    TrainerKey(
        "ModelCheckpoint",
        "means",
        "It saves beside the run's own checkpoints, in the run folder's `model_checkpoints/STAGE`: after examinations "
        "if it monitors an accuracy, else every `every_n_train_steps` or at the end of a stage.",
    ),
    TrainerKey("ModelPruning", "refused", AVERAGES),
    TrainerKey("ModelSummary", "honoured", "Lightning's table of modules."),
    TrainerKey("OnExceptionCheckpoint", "refused", "A run that fails resumes from its last checkpoint."),
    TrainerKey("RichModelSummary", "honoured", "Lightning's table of modules, in colour."),
    TrainerKey("RichProgressBar", "refused", "The run has its bar, which `trainer.enable_progress_bar` switches."),
    TrainerKey("SpikeDetection", "refused", "The run ends at the first loss that is no number."),
    TrainerKey("StochasticWeightAveraging", "refused", AVERAGES),
    TrainerKey("TQDMProgressBar", "refused", "The run has its bar, which `trainer.enable_progress_bar` switches."),
    TrainerKey("ThroughputMonitor", "refused", "Useful tokens per second are in metrics.csv and in W&B."),
    TrainerKey("Timer", "refused", "The time of a launch is `trainer.max_time`."),
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

`trainer:` takes the arguments of Lightning's Trainer. Each is honoured as Lightning documents it, or means what the
table says, or is refused with the key that does the job. `tests/commands/test_trainer_keys.py` compares the table with
Lightning's signature and with what `fit` does.

| argument | use | meaning here, or the key that does the job |
|---|---|---|
{arguments}

Callbacks of Lightning under `trainer.callbacks`. What a callback may monitor are the columns of metrics.csv (`loss`,
`tokens`, `lr_PART`), `accuracy/overall` with `accuracy/SKILL`, and what a callback of your own logs in every step with
`pl_module.log`, which is in metrics.csv and in W&B, too.

| callback | use | meaning here, or what does the job |
|---|---|---|
{callbacks}
"""
