"""scripts/slurm.sbatch under simulated SLURM: a job that must end is requeued and continues."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from lit_mm.run.interruption import REQUEUE
from tests.clusters import PATIENCE, ROOT, has_steps, losses, recipe, slurm, started, wait_for

SCRIPT = ROOT / "scripts/slurm.sbatch"
STEPS = 10


def test_the_script_asks_for_a_warning_and_for_being_requeued():
    asked = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?", SCRIPT.read_text(), re.MULTILINE)
    options = dict(asked)
    assert options["signal"].startswith("USR1@") and "requeue" in options and options["open-mode"] == "append"


@pytest.mark.distributed
def test_a_job_that_has_to_end_is_requeued_and_goes_on_exactly(tmp_path: Path):
    config = recipe(tmp_path, STEPS)
    command = ["bash", str(SCRIPT), "--config", config, "--trainer.strategy", "ddp"]
    with started(command, tmp_path, "whole.log", **slurm(tmp_path, 2, "40")) as job:
        assert job.wait(PATIENCE) == 0, (tmp_path / "whole.log").read_text()[-3000:]

    run, environment = tmp_path / "runs/slurm-41", slurm(tmp_path, 2, "41")
    for restarts, (warning, steps) in enumerate([(signal.SIGUSR1, 3), (signal.SIGTERM, STEPS + 2)]):
        log = f"{warning.name}.log"
        with started(command, tmp_path, log, **environment, SLURM_RESTART_COUNT=str(restarts)) as job:
            wait_for(lambda steps=steps: has_steps(run, steps))
            job.send_signal(warning)  # the script has become srun
            assert job.wait(PATIENCE) == REQUEUE
        said = (tmp_path / log).read_text()
        assert f"stopped by {warning.name} after step" in said and "SLURM job 41 is requeued." in said
        assert (tmp_path / "requeued").read_text() == "41\n" * (restarts + 1)  # by one rank
        assert len(losses(run)) < 2 * STEPS

    with started(command, tmp_path, "last.log", **environment, SLURM_RESTART_COUNT="2") as job:
        assert job.wait(PATIENCE) == 0, (tmp_path / "last.log").read_text()[-3000:]
    assert losses(run) == losses(tmp_path / "runs/slurm-40")
    assert [step for step, _, _ in losses(run)] == list(range(1, 2 * STEPS + 1))
