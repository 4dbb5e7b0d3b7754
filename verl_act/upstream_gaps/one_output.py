"""Gap: outside verl's V1 trainer (`fully_async_policy`, `one_step_off_policy`), an episode is one output, not a list.

A stepwise episode, an output per turn, would be played and then fail with an AttributeError. Here its first rollout is
refused; episodes of mode `concat` are one output and work.

Upstream change it waits for: lists in `AgentLoopWorker._agent_loop_postprocess`
(verl/experimental/agent_loop/agent_loop.py), as in `AgentLoopWorkerTQ`.
"""

from collections.abc import Callable
from typing import Any

from verl_act.errors import ConfigError
from verl_act.upstream_gaps import wrap_when_imported


@wrap_when_imported("verl.experimental.agent_loop.agent_loop:AgentLoopWorker._run_agent_loop")
def refuse_stepwise(wrapped: Callable[..., Any], worker: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    takes_one = type(worker)._agent_loop_postprocess is AgentLoopWorker._agent_loop_postprocess
    if takes_one and kwargs["agent_name"] == "act_env":
        from verl_act.config.settings import ActSettings
        from verl_act.settings.episodes import Mode

        episode = ActSettings.from_config(worker.config.data).episode
        if episode.mode is Mode.STEPWISE and episode.max_turns > 1:
            raise ConfigError(
                "data.act.episode.mode=stepwise makes an output of every turn, and this trainer of verl takes one per "
                "episode. Set data.act.episode.mode=concat, or train with verl.trainer.main_ppo (trainer.use_v1=true)."
            )
    return wrapped(*args, **kwargs)
