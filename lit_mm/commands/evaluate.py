"""`evaluate`: accuracy per skill and the blind baseline from a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lit_mm.commands.generate import ACCELERATORS
from lit_mm.commands.options import Arguments
from lit_mm.errors import UserError


def evaluate(arguments: Sequence[str]) -> None:
    """Ask a trained model the held-out questions, with the pictures and with shuffled ones."""
    parser = Arguments(prog="python -m lit_mm evaluate", description=evaluate.__doc__)
    parser.add_argument(
        "checkpoint", nargs="?", default="runs/latest", help="run folder or .ckpt (default: runs/latest)"
    )
    parser.add_argument("--stage", help="open the end of this stage (default: the run's newest checkpoint)")
    parser.add_argument("--config", help="build the model from this config instead of the checkpoint's own")
    parser.add_argument("--documents", type=int, help="held-out documents (default: as many as the recipe says)")
    parser.add_argument("--batch_size", type=int, default=64, help="documents decoded together (default: 64)")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="what to print (default: table)")
    parser.add_argument("--accelerator", choices=ACCELERATORS, help="device that answers (default: as the config says)")
    choices = parser.parse_args(arguments)
    for name, count in (("documents", choices.documents), ("batch_size", choices.batch_size)):
        if count is not None and count < 1:
            raise UserError(f"--{name} is at least 1, got {count}")

    from lit_mm.commands.trained import launched, open_trained  # torch: seconds, which --help need not wait for
    from lit_mm.evaluation.examiners import examine
    from lit_mm.report.tables import accuracy_table

    with launched(choices.checkpoint, choices.config, choices.stage) as path:
        module, data, _ = open_trained(path, choices.config, accelerator=choices.accelerator)
        documents = data.heldout(choices.documents)
        sighted = examine(module, documents, batch_size=choices.batch_size).figures
        blind = examine(module, documents, blind=True, batch_size=choices.batch_size).figures
    if choices.format == "json":
        print(
            json.dumps(
                {
                    "checkpoint": path,
                    "documents": sighted.count,
                    "accuracy": {"overall": sighted.overall, "skills": sighted.skills},
                    "blind": {"overall": blind.overall, "skills": blind.skills},
                }
            )
        )
    else:
        print(accuracy_table(sighted, blind))
