"""DeepSpeed's engine on CPUs."""

from __future__ import annotations

from importlib import import_module


def deepspeed_on_cpu() -> None:
    """Let DeepSpeed use the CPU, on a machine with a GPU too, and without its compiled shared-memory messages.

    These take a minute to compile on first use, and add up in another order than gloo does.
    """
    # The attribute `deepspeed.comm.torch` is torch itself, which that package imports under the same name
    backend = import_module("deepspeed.comm.torch")
    from deepspeed.accelerator import set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    set_accelerator(CPU_Accelerator())
    backend.build_shm_op = lambda: None
