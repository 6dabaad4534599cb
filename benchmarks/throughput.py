"""This benchmark measures the host's time that the throughput of a step costs, without training.

    python benchmarks/throughput.py [--config experiments/llava_1_5.yaml] [--batches 200]

It takes micro-batches of the last stage of a recipe, with blank pixels. It measures, in milliseconds of the process's
CPU time: once per stage, copying the network to the meta device and probing its parts; per micro-batch, reading the
sizes of the batch and evaluating its operations (median). Nothing runs on a device.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import chain, islice

import torch

from lit_mm.commands.recipe import RecipeCLI, quiet
from lit_mm.planning.row import Row
from lit_mm.planning.work import in_all, meta_copy, work_of
from lit_mm.samples.collate import collate


def milliseconds(run: Callable[[], object]) -> float:
    """CPU time of the process for a call."""
    start = time.process_time()
    run()
    return 1000 * (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="experiments/llava_1_5.yaml")
    parser.add_argument("--batches", type=int, default=200)
    chosen = parser.parse_args()
    quiet()
    with torch.device("meta"):
        cli = RecipeCLI(["--config", chosen.config], "describe")
    module, stage = cli.model, cli.stages[-1]
    module.begin(stage, total_steps=1)
    data, processor = cli.data_of(stage), module.processor_of(stage)
    data.begin(processor, stage, seed=cli.seed)
    maker = data.maker(processor)
    batches = []
    for micro in islice(data.stream, chosen.batches):
        samples = [maker(number)[0] for number in chain(*micro.rows)]
        views = [
            [torch.zeros(3, *view.size) for view in chain(*(plan.views for plan in sample.plans))]
            + [torch.zeros(3, *view.size) for view in chain(*(plan.second for plan in sample.plans))]
            for sample in samples
        ]
        batches.append(collate(samples, processor, views=views))
    objectives = [module.objectives[name] for name in module.weights_of_objectives(stage)]
    work = work_of(meta_copy(module.network), objectives)
    assert work is not None, "the model reads pixels alone"
    begin = milliseconds(lambda: work_of(meta_copy(module.network), objectives))
    probe = milliseconds(lambda: work.operations(Row.of_batch(batches[0])))
    times = [milliseconds(lambda batch=batch: in_all(work.operations(Row.of_batch(batch)))) for batch in batches]
    print(f"{chosen.config}, {len(batches)} micro-batches of {len(batches[0].lengths)} samples at first")
    print(f"once per stage: copy {begin:.0f} ms, probe {probe:.0f} ms")
    print(f"per micro-batch: {statistics.median(times):.2f} ms")


if __name__ == "__main__":
    main()
