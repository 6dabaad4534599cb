"""The processes of a job are forked from one that has done the imports, and joined as by torchrun."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from tests.kills import free_port


def run_ranks(work: Callable[[int], None], ranks: int) -> None:
    """Run `work(rank)` in one process per rank. Exits with 1 if one fails; its traceback is on standard error."""
    port, children = free_port(), []
    for rank in range(ranks):
        child = os.fork()
        if not child:
            if ranks > 1:
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "forked"}
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
            try:
                work(rank)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
        children.append(child)
    if any(os.waitpid(child, 0)[1] for child in children):
        sys.exit(1)
