"""A sweep on W&B's server: thin calls of wandb's API."""

from __future__ import annotations

from lit_mm.errors import UserError, first_line
from lit_mm.sweeps.specification import Specification


def run_online(specification: Specification, *, create_only: bool = False, most: int | None = None) -> None:
    """Create a sweep on W&B's server, and run its trials by an agent.

    Args:
        specification: checked sweep.
        create_only: True creates the sweep and runs no trial.
        most: most trials that this agent runs; None for all.
    Raises:
        UserError: the server cannot be reached or refuses the sweep.
    """
    import wandb

    content = specification.content
    try:
        identity = wandb.sweep(content, entity=content.get("entity"), project=content.get("project", "lit_mm"))
        path = "/".join(part for part in (content.get("entity"), content.get("project", "lit_mm"), identity) if part)
        print(f"other workers run trials by: wandb agent {path}")
        if not create_only:
            wandb.agent(identity, entity=content.get("entity"), project=content.get("project", "lit_mm"), count=most)
    except (wandb.Error, ValueError) as error:
        line = first_line(error)
        raise UserError(
            f"W&B's server refused the sweep: {line}. To run it without the server, add --offline"
        ) from error
