"""The `verl.plugins` entry point: importing this module registers everything with verl.

Every process that imports verl imports it too, so it stays light: code that needs heavy verl modules is hooked to their
import. verl hides a plugin's exceptions at DEBUG level; here they are logged before they are raised.
"""

import logging
from types import ModuleType

import wrapt

logger = logging.getLogger(__name__)

AGENT_LOOP_MODULE = "verl.experimental.agent_loop.agent_loop"
TRAINER_MODULE = "verl.trainer.ppo.v1.trainer_base"
SFT_CHECKPOINT_MODULE = "verl.utils.checkpoint.checkpoint_handler"
REWARD_MODULE = "verl.experimental.reward_loop.reward_loop"


def register() -> None:
    """Register the CPU platform and its patches, and hook the rest to the import of the verl modules that they extend.

    These are the `act_env` agent loop, the reward guard, and the fixes in `upstream_gaps`.
    """
    from verl_act.upstream_gaps.cpu import activate

    activate()
    wrapt.when_imported(AGENT_LOOP_MODULE)(_register_agent_loop)
    wrapt.when_imported(TRAINER_MODULE)(_patch_trainer)
    wrapt.when_imported(REWARD_MODULE)(_patch_rewards)
    wrapt.when_imported(SFT_CHECKPOINT_MODULE)(_patch_sft_checkpoints)


def _register_agent_loop(module: object) -> None:
    """Importing our agent loop registers it in verl's registry."""
    import verl_act.rollout.agent_loop  # noqa: F401


def _patch_trainer(module: ModuleType) -> None:
    from verl_act.reward_fns import reward_guard
    from verl_act.upstream_gaps import damaged_checkpoints, failed_rollouts, training_metrics

    training_metrics.close_gap(module)
    damaged_checkpoints.close_gap(module)
    failed_rollouts.close_gap(module)
    reward_guard.warn_when_replaced(module)


def _patch_rewards(module: ModuleType) -> None:
    from verl_act.upstream_gaps import trusted_code

    trusted_code.close_gap(module)


def _patch_sft_checkpoints(module: ModuleType) -> None:
    from verl_act.upstream_gaps import damaged_checkpoints

    damaged_checkpoints.close_gap_of_sft(module)


try:
    register()
except Exception:
    logger.exception(
        "verl_act could not register with verl, which would now run without it. "
        "Check that verl is a version this package supports (see pyproject.toml)."
    )
    raise
