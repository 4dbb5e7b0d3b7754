"""The `verl.plugins` entry point: importing this module registers everything with verl.

Every process that imports verl imports it too, so it stays light: code that needs heavy verl modules is hooked to their
import. verl hides a plugin's exceptions at DEBUG level; here they are logged before they are raised.
"""

import logging
from importlib import import_module

import wrapt

logger = logging.getLogger(__name__)


def register() -> None:
    """Register the `act_env` agent loop and the CPU platform, and close the gaps."""
    from verl_act.upstream_gaps import (  # noqa: F401
        cpu,
        damaged_checkpoints,
        failed_rollouts,
        one_output,
        reward_guard,
        thought_tokens,
        training_metrics,
        trusted_code,
        value_model,
    )

    cpu.activate()
    # Importing our agent loop registers it in verl's registry.
    after = wrapt.when_imported("verl.experimental.agent_loop.agent_loop")
    after(lambda _: import_module("verl_act.rollout.agent_loop"))


try:
    register()
except Exception:
    logger.exception(
        "verl_act could not register with verl, which would now run without it. "
        "Check that verl is a version this package supports (see pyproject.toml)."
    )
    raise
