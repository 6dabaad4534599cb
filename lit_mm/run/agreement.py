"""Agreement of all ranks on a decision of the first rank before a process group exists: run folder, resume point."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import lightning as L
import torch.distributed as dist

_asked: Counter[str] = Counter()
_stores: list[dist.Store] = []  # stays alive, because the first rank's store serves the others


def agree(trainer: L.Trainer, topic: str, decide: Callable[[], str]) -> str:
    """Return on every rank what `decide` returns on the first. All ranks call this with the same topics in one order.

    Lightning starts the other ranks of a machine when the first stage begins, with the environment of the first rank;
    the decision then travels in that environment. Ranks that torchrun or SLURM has started exchange it through a store
    at the master address.

    Args:
        trainer: Trainer that knows the rank, the number of ranks and how they are started; it need not train.
        topic: name of the decision.
        decide: function that decides; it runs on the first rank only.
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
