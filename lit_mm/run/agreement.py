"""What the first rank decides, known to all ranks before they have been joined: the run folder, where to resume."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import lightning as L
import torch.distributed as dist

_asked: Counter[str] = Counter()
_stores: list[dist.Store] = []  # kept: the first rank's serves the others


def agree(trainer: L.Trainer, topic: str, decide: Callable[[], str]) -> str:
    """What `decide` says on the first rank, on every rank. All ranks ask about the same topics in the same order.

    Lightning starts the other ranks of a machine when the first stage begins, with the first one's environment: there
    it is written. Ranks that torchrun or SLURM started meet at the address where they will be joined.

    Args:
        trainer: tells rank, number of ranks and how they are started; not necessarily the one that will train.
        topic: names the question.
        decide: asked on the first rank only.
    """
    _asked[topic] += 1
    key = f"LIT_MM_AGREED_{topic}_{_asked[topic]}".upper()
    strategy = trainer.strategy
    first = trainer.global_rank == 0
    decision = decide() if first else None
    if trainer.world_size == 1:
        return decision
    if dist.is_initialized():
        box = [decision]
        dist.broadcast_object_list(box, src=0)
        return box[0]
    environment = strategy.cluster_environment
    if first and not environment.creates_processes_externally:
        os.environ[key] = decision
        return decision
    if not first and key in os.environ:
        return os.environ[key]
    if not _stores:
        os.environ.setdefault("MASTER_ADDR", environment.main_address)
        os.environ.setdefault("MASTER_PORT", str(environment.main_port))
        store, _, _ = next(dist.rendezvous("env://", rank=trainer.global_rank, world_size=trainer.world_size))
        _stores.append(store)
    if first:
        _stores[0].set(key, decision)
        return decision
    return _stores[0].get(key).decode()
