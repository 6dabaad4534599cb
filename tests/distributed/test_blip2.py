"""BLIP-2's objectives of pairs on two ranks against one process over the union batch.

The first test has unequal numbers of pairs and lengths of texts; the others train the first stage under every engine.

| objective | on several ranks, as published | equal to one process over the union batch |
|---|---|---|
| ITC | candidates are the pairs of all ranks, gathered without gradient | the loss; the gradient not |
| ITM | negatives are pairs of all ranks, image features gathered with gradient | loss and gradient, for equal draws |
| ITG | mean over the tokens of all ranks (published: mean over GPUs of the means of each) | loss and gradient |
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from lit_mm.callbacks.metrics_csv import read_metrics
from lit_mm.families import Blip2
from lit_mm.objectives.query_pairs import matching_logits, matching_losses
from lit_mm.samples.batch import PAIRS, TOKENS, Batch
from lit_mm.samples.collate import collate
from tests.kills import Launch, free_port, launch_all
from tests.three_stages import CUT
from tests.tiny_blip import page
from tests.tiny_blip2 import blip2

pytestmark = pytest.mark.distributed

SIZES = (3, 2)  # pairs of each rank
TEXTS, IMAGES = torch.tensor([1, 4, 0, 2, 3]), torch.tensor([3, 0, 4, 1, 2])  # negatives of each pair
EXACT = ("itm", "itg")  # objectives whose gradients do not depend on the split


def batch_of(module: Blip2, numbers: range) -> Batch:
    samples = [module.processor.sample(page(number)) for number in numbers]
    return collate(samples, module.processor, units={TOKENS: 1, PAIRS: sum(SIZES)})


def losses_of(module: Blip2, batch: Batch, rows: slice) -> dict[str, Tensor]:
    """Objective -> sum over the pairs of this rank, with fixed negatives."""
    pairs = module.objectives["itc"].shared(module.network, batch)
    logits = matching_logits(module.network.connector, pairs, TEXTS[rows], IMAGES[rows])
    sums = {name: module.objectives[name](module.network, batch) for name in ("itc", "itg")}
    return sums | {"itm": matching_losses(logits).sum()}


def gradients_of(module: Blip2, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward(retain_graph=True)
    return {name: p.grad.clone() for name, p in module.network.connector.named_parameters() if p.grad is not None}


def work(rank: int, port: int, folder: Path) -> None:
    """Write the losses and gradients, summed over the ranks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(SIZES))
    start = sum(SIZES[:rank])
    rows = slice(start, start + SIZES[rank])
    module = blip2().eval()
    losses = losses_of(module, batch_of(module, range(rows.start, rows.stop)), rows)
    gradients = {name: gradients_of(module, losses[name]) for name in EXACT}
    sums = {name: loss.detach() for name, loss in losses.items()}
    for tensor in [*sums.values(), *(gradient for of in gradients.values() for gradient in of.values())]:
        dist.all_reduce(tensor)
    if rank == 0:
        torch.save((sums, gradients), folder / "ranks.pt")
    dist.destroy_process_group()


def test_losses_and_gradients_of_two_ranks_are_those_of_one_process(tmp_path: Path) -> None:
    mp.spawn(work, (free_port(), tmp_path), nprocs=len(SIZES))
    sums, gradients = torch.load(tmp_path / "ranks.pt")
    module = blip2().eval()
    expected = losses_of(module, batch_of(module, range(sum(SIZES))), slice(None))
    assert sums.keys() == expected.keys()
    for name, loss in expected.items():
        assert sums[name].item() == pytest.approx(loss.item(), rel=1e-5), name
    for name in EXACT:
        of_union = gradients_of(module, expected[name])
        assert "norm.weight" in of_union and of_union.keys() == gradients[name].keys()
        for parameter, gradient in of_union.items():
            torch.testing.assert_close(gradients[name][parameter], gradient, rtol=1e-4, atol=1e-6)


ENGINES = {"ddp": "ddp", "zero2": "zero2", "zero3": CUT}  # everything of ZeRO-3 is cut up
STEPS = 3


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of the first stage with the hardest negatives, so that draws do not depend on the split."""
    folder, options = tmp_path_factory.mktemp("queries"), {"steps": STEPS, "lr": 1e-3}
    launches = [Launch(f"{recipe} one process", recipe=recipe, **options) for recipe in ("queries", "exact queries")]
    launches += [
        Launch(f"{launch.recipe} {name}", recipe=launch.recipe, ranks=2, strategy=engine, **options)
        for launch in launches
        for name, engine in ENGINES.items()
    ]
    launch_all(launches, folder)
    return folder


def losses(folder: Path, name: str) -> list[float]:
    rows = read_metrics(folder / "metrics.csv")
    assert len(rows) == STEPS
    return [row[f"loss/{name}"] for row in rows]


@pytest.mark.parametrize("engine", ENGINES)
def test_matching_and_captioning_train_as_in_one_process_under_every_engine(runs: Path, engine: str) -> None:
    for name in EXACT:
        expected = losses(runs / "exact queries one process", name)
        assert losses(runs / f"exact queries {engine}", name) == pytest.approx(expected, rel=1e-4), name
        assert len(set(expected)) == STEPS


@pytest.mark.parametrize("engine", ENGINES)
def test_the_loss_of_the_first_step_is_that_of_one_process_and_later_ones_are_those_of_ddp(
    runs: Path, engine: str
) -> None:
    for name in ("itc", *EXACT):
        measured = losses(runs / f"queries {engine}", name)
        assert measured[0] == pytest.approx(losses(runs / "queries one process", name)[0], rel=1e-5), name
        assert measured == pytest.approx(losses(runs / "queries ddp", name), rel=1e-4), name
