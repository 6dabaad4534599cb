"""The entry point by which lmms-eval finds lit_mm: `--model lit_mm --model_args checkpoint=runs/latest`."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """Return lmms-eval's manifest of the model `lit_mm`, with a class for tasks of messages and one for other tasks."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyrefly: ignore[missing-import]  # an extra

    return ModelManifest(
        model_id="lit_mm",
        chat_class_path="lit_mm.commands.lmms.ChatModel",
        simple_class_path="lit_mm.commands.lmms.SimpleModel",
    )
