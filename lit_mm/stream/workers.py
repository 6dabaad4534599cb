"""The loader's worker processes: when they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading


def end_with_parent(worker: int) -> None:
    """Start of a loader's worker: it ends as soon as its trainer is gone, however that ended, and not before.

    torch's own watchdog asks for its parent's id when it starts. A trainer that is killed before that leaves a worker
    that takes the adopting process for its trainer, and holds its memory for ever.

    A terminal, a launcher or SLURM sends its signals to the workers, too. The trainer still needs them for the step
    after which it will save and end, so they heed the SIGTERM of their trainer alone.

    Args:
        worker: its number; torch passes it.
    """

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    trainer = multiprocessing.parent_process().pid  # os.getppid() is the fork server's, if there is one

    def heed() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
            pass
        os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform == "linux":  # macOS has no `sigwaitinfo`
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in the threads that start from here on, too
        threading.Thread(target=heed, daemon=True).start()
    threading.Thread(target=watch, daemon=True).start()
