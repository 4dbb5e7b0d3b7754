"""The `verl.plugins` entry point: importing this module registers everything with verl.

verl imports it in every process that imports verl, so it stays light: what needs heavy verl modules is hooked to their
import. verl swallows a plugin's exceptions at DEBUG level; here they are shown before they are raised.
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
    """Register the CPU platform and its patches; and, once verl imports their places, the `act_env` agent loop, the
    training metrics, the end of runs that only fail, the warning of a reward that is not in its place, the trust in a
    model's code that a run is set to, and the choice of the checkpoint that a run resumes from.
    """
    from verl_act.upstream_gaps.cpu import activate

    activate()
    wrapt.when_imported(AGENT_LOOP_MODULE)(_register_agent_loop)
    wrapt.when_imported(TRAINER_MODULE)(_patch_trainer)
    wrapt.when_imported(REWARD_MODULE)(_patch_rewards)
    wrapt.when_imported(SFT_CHECKPOINT_MODULE)(_patch_sft_checkpoints)


def _register_agent_loop(module: object) -> None:
    """verl's registry lives in the module whose import brought us here; ours fills it by its own import."""
    import verl_act.rollout.agent_loop  # noqa: F401


def _patch_trainer(module: ModuleType) -> None:
    from verl_act.reward_fns import reward_guard
    from verl_act.upstream_gaps import damaged_checkpoints as checkpoints
    from verl_act.upstream_gaps import failed_rollouts as failures
    from verl_act.upstream_gaps import training_metrics

    training_metrics.close_gap(module)
    checkpoints.close_gap(module)
    failures.close_gap(module)
    reward_guard.warn_when_replaced(module)


def _patch_rewards(module: ModuleType) -> None:
    from verl_act.upstream_gaps import trusted_code

    trusted_code.close_gap(module)


def _patch_sft_checkpoints(module: ModuleType) -> None:
    from verl_act.upstream_gaps import damaged_checkpoints as checkpoints

    checkpoints.close_gap_of_sft(module)


try:
    register()
except Exception:
    logger.exception(
        "verl_act could not register with verl, which would now go on without it. "
        "Check that verl is a version this package supports (see pyproject.toml)."
    )
    raise
