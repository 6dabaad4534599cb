"""Two nodes in network namespaces: one process is killed, and the run ends like an unbroken one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from subprocess import Popen

import psutil
import pytest

from tests.clusters import PATIENCE, Node, has_steps, losses, recipe, started, two_nodes, wait_for, why_no_nodes

STEPS = 6  # of each of two stages
PORT = 29400
# No restarts: each agent would count its own, and processes of different counts never meet
STATIC = ("--master_addr", "{first}", "--master_port", f"{PORT}", "--node_rank", "{number}")
ELASTIC = ("--rdzv_backend", "c10d", "--rdzv_endpoint", f"{{first}}:{PORT}", "--rdzv_id", "lit_mm")
ELASTIC += ("--rdzv_conf", "is_host={is_host}", "--local_addr", "{own}", "--max_restarts", "3")


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    if why := why_no_nodes():
        pytest.skip(f"two nodes cannot be made: {why}")
    with two_nodes() as made:
        yield made


def agent_on(
    nodes: tuple[Node, Node], number: int, folder: Path, run_dir: str, meeting: tuple[str, ...]
) -> AbstractContextManager[Popen]:
    """Start torchrun on one of the nodes, as in README. Writes `<run_dir>-<node>.log`."""
    node = nodes[number]
    facts = {"first": nodes[0].address, "own": node.address, "number": number, "is_host": number == 0}
    command = node.command(
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"),
        *("--shutdown-timeout", "600", *(word.format(**facts) for word in meeting)),
        *("-m", "lit_mm", "fit", "--config", "recipe.yaml", "--run_dir", run_dir),
        *("--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.strategy", "zero2"),
    )
    # torch 2.15's agents keep what they learnt in the first round, and one that comes later would never hear of it
    apart = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if meeting is ELASTIC else {}
    return started(command, folder, f"{run_dir}-{number}.log", GLOO_SOCKET_IFNAME=node.link, **apart)


@contextmanager
def torchrun(
    nodes: tuple[Node, Node], folder: Path, run_dir: str, meeting: tuple[str, ...] = STATIC
) -> Iterator[list[Popen]]:
    """Run the same command on both nodes."""
    with ExitStack() as stack:
        yield [stack.enter_context(agent_on(nodes, number, folder, run_dir, meeting)) for number in range(2)]


def ended(agents: list[Popen]) -> list[int]:
    return [agent.wait(PATIENCE) for agent in agents]


def trainer_of(agent: Popen) -> psutil.Process | None:
    """Process that trains on the node of an agent."""
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


@pytest.fixture(scope="module")
def whole(nodes, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, float]]:
    """Losses of an unbroken run."""
    folder = tmp_path_factory.mktemp("whole")
    recipe(folder, STEPS)
    with torchrun(nodes, folder, "run") as agents:
        assert ended(agents) == [0, 0], logs(folder, "run")
    return losses(folder / "run")


@pytest.mark.distributed
def test_a_process_that_is_killed_comes_back_and_the_run_ends_as_it_would_have(nodes, whole, tmp_path):
    recipe(tmp_path, STEPS)
    with torchrun(nodes, tmp_path, "run", ELASTIC) as agents:
        wait_for(lambda: has_steps(tmp_path / "run", STEPS + 1))
        trainer_of(agents[1]).kill()
        assert ended(agents) == [0, 0], logs(tmp_path, "run")
    check(tmp_path, whole)


@pytest.mark.distributed
def test_without_restarts_the_job_ends_on_both_nodes_and_the_same_command_goes_on(nodes, whole, tmp_path):
    recipe(tmp_path, STEPS)
    with torchrun(nodes, tmp_path, "run") as agents:
        wait_for(lambda: has_steps(tmp_path / "run", STEPS + 1))
        trainer_of(agents[1]).kill()
        assert 0 not in ended(agents), logs(tmp_path, "run")
    with torchrun(nodes, tmp_path, "run") as agents:
        assert ended(agents) == [0, 0], logs(tmp_path, "run")
    check(tmp_path, whole)


def check(folder: Path, whole: list[tuple[int, str, float]]) -> None:
    assert losses(folder / "run") == whole
    assert [step for step, _, _ in whole] == list(range(1, 2 * STEPS + 1))
    said = (folder / "run-0.log").read_text()
    assert said.count("stage pretrain: trainable") == 1  # finetune goes on, nothing else


@pytest.mark.distributed
def test_a_node_that_is_lost_as_a_whole_may_join_again(nodes, whole, tmp_path):
    recipe(tmp_path, STEPS)
    with agent_on(nodes, 0, tmp_path, "run", ELASTIC) as stays:
        with agent_on(nodes, 1, tmp_path, "run", ELASTIC):
            wait_for(lambda: has_steps(tmp_path / "run", STEPS + 1))
        with agent_on(nodes, 1, tmp_path, "run", ELASTIC) as back:
            assert ended([stays, back]) == [0, 0], logs(tmp_path, "run")
    assert losses(tmp_path / "run") == whole
