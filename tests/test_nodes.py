"""Two nodes, in network namespaces: one's process is killed, comes back, and the run ends as it would have."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import Popen

import psutil
import pytest

from tests.clusters import PATIENCE, Node, has_steps, losses, recipe, started, two_nodes, wait_for, why_no_nodes

STEPS = 10  # of each of two stages
PORT = 29400
STATIC = ("--master_addr", "{first}", "--master_port", f"{PORT}", "--node_rank", "{number}")
ELASTIC = ("--rdzv_backend", "c10d", "--rdzv_endpoint", f"{{first}}:{PORT}", "--rdzv_id", "lit_mm")
ELASTIC += ("--rdzv_conf", "is_host={is_host}", "--local_addr", "{own}")


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    if why := why_no_nodes():
        pytest.skip(f"two nodes cannot be made: {why}")
    with two_nodes() as made:
        yield made


@contextmanager
def torchrun(
    nodes: tuple[Node, Node], folder: Path, run_dir: str, *meeting: str, restarts: int = 3, strategy: str = "zero2"
) -> Iterator[list[Popen]]:
    """The same command on both nodes, as the README has it. Leaves `<run_dir>-<node>.log`."""
    with ExitStack() as stack:
        agents = []
        for number, node in enumerate(nodes):
            facts = {"first": nodes[0].address, "own": node.address, "number": number, "is_host": number == 0}
            command = node.command(
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"),
                *("--max_restarts", str(restarts), *(word.format(**facts) for word in meeting)),
                *("-m", "lit_mm", "fit", "--config", "recipe.yaml", "--run_dir", run_dir),
                *("--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.strategy", strategy),
            )
            log = f"{run_dir}-{number}.log"
            agents.append(stack.enter_context(started(command, folder, log, GLOO_SOCKET_IFNAME=node.link)))
        yield agents


def ended(agents: list[Popen]) -> list[int]:
    return [agent.wait(PATIENCE) for agent in agents]


def trainer_of(agent: Popen) -> psutil.Process | None:
    """The process that trains on an agent's node."""
    family = psutil.Process(agent.pid).children(recursive=True)
    return next(
        (
            p
            for p in family
            if p.is_running() and "lit_mm" in p.cmdline() and "torch.distributed.run" not in p.cmdline()
        ),
        None,
    )


def logs(folder: Path, run_dir: str) -> str:
    return "\n".join((folder / f"{run_dir}-{number}.log").read_text()[-3000:] for number in range(2))


@pytest.mark.slow
def test_a_node_whose_process_is_killed_comes_back_and_the_run_ends_as_it_would_have(nodes, tmp_path):
    recipe(tmp_path, STEPS)
    with torchrun(nodes, tmp_path, "whole", *STATIC) as agents:
        assert ended(agents) == [0, 0], logs(tmp_path, "whole")
    with torchrun(nodes, tmp_path, "killed", *STATIC) as agents:
        wait_for(lambda: has_steps(tmp_path / "killed", 6))
        victim = trainer_of(agents[1])
        victim.kill()
        assert ended(agents) == [0, 0], logs(tmp_path, "killed")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "killed")) == 2 * STEPS
    assert "Restarting worker group" in logs(tmp_path, "killed") or "attempts left" in logs(tmp_path, "killed")
