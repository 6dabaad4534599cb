"""This module ends the worker processes of a data loader together with the training process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading


def end_with_parent(worker: int) -> None:
    """Make this worker process end when the training process ends, and ignore signals from elsewhere.

    torch's watchdog asks for the id of the parent process when it starts. If the trainer is killed before that, the
    watchdog takes the adopting process for the trainer, and the worker holds its memory for ever.

    Terminals, launchers and SLURM send signals to workers, too. The trainer still needs its workers for the step after
    which it saves and ends, so workers obey SIGTERM from the trainer only.

    Args:
        worker: number of the worker, passed by torch.
    """

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    trainer = multiprocessing.parent_process().pid  # os.getppid() may be the id of the fork server

    def wait_for_trainer() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
            pass
        os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform == "linux":  # macOS has no `sigwaitinfo`
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads started from here on inherit the mask
        threading.Thread(target=wait_for_trainer, daemon=True).start()
    threading.Thread(target=watch, daemon=True).start()
