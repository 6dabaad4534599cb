"""Memory that was freed is returned to the system at intervals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lit_mm.callbacks.memory_trim import MemoryTrim


def test_it_trims_every_n_steps(recipe: Any):
    trim, calls = MemoryTrim(every=3), []
    trim.libc = SimpleNamespace(malloc_trim=calls.append)
    recipe.run(recipe.module(), [trim])  # 4 + 3 steps
    assert calls == [0, 0]


def test_without_glibc_it_does_nothing(recipe: Any):
    trim = MemoryTrim(every=1)
    trim.libc = None
    module = recipe.module()
    recipe.run(module, [trim])
    assert module.step == 7
