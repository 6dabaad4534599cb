"""DeepSpeed's engine on CPUs."""

from __future__ import annotations

from importlib import import_module


def deepspeed_on_cpu() -> None:
    """Make DeepSpeed use the CPU, even on a machine with a GPU, and without its compiled shared-memory operations.

    These operations take a minute to compile on first use, and sum in another order than gloo.
    """
    # The attribute `deepspeed.comm.torch` is torch itself, which that package imports under the same name
    backend = import_module("deepspeed.comm.torch")
    from deepspeed.accelerator import set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    set_accelerator(CPU_Accelerator())
    backend.build_shm_op = lambda: None
