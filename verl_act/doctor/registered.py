"""Checks that verl has loaded this package: in this process, in Ray workers, and in its configuration."""

from __future__ import annotations

import os
import socket
from typing import Any

from verl_act.errors import InstallationError, first_line
from verl_act.preflight.problem import NO_DEVICE, local_devices
from verl_act.preflight.software import vllm_is_cpu_build

_SWITCH = "VERL_USE_EXTERNAL_PLUGINS"
_LOOP = "act_env"


def in_driver() -> str:
    """Check what verl registers on import in this process."""
    return _complete(registrations(), "in this process")


def registrations() -> dict[str, Any]:
    """What is registered in a process that imports verl. Also runs in Ray workers."""
    from verl_act import __version__

    facts = {"version": __version__, "host": socket.gethostname(), "switch": os.environ.get(_SWITCH, "auto")}
    try:
        import verl  # noqa: F401
        from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
        from verl.plugin.platform import get_platform
        from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    except ValueError:
        # $VERL_PLATFORM names our platform but nothing has registered it: plugins are switched off.
        if is_on(facts["switch"]):
            raise
        return {**facts, "agent loop": False, "training metrics": False, "platform": None}
    return {
        **facts,
        "agent loop": _LOOP in _agent_loop_registry,
        "training metrics": hasattr(PPOTrainer._compute_metrics, "__wrapped__"),
        "platform": get_platform().device_name,
    }


def is_on(switch: str) -> bool:
    """Whether this value of the switch loads our plugin; it is a list, as verl reads it."""
    return bool({"auto", "verl_act"} & {name.strip() for name in switch.lower().split(",")})


def _complete(facts: dict[str, Any], where: str) -> str:
    missing = [name for name in ("agent loop", "training metrics") if not facts[name]]
    if not missing:
        return f"agent loop {_LOOP}, training metrics, platform {facts['platform']}"
    detail = f"{' and '.join(missing)} not registered {where}."
    if not is_on(facts["switch"]):
        raise InstallationError(f"{detail} {_SWITCH}={facts['switch']}.", f"Unset {_SWITCH}, or add verl_act to it.")
    raise InstallationError(
        detail, "Install the package itself (pip install verl-act), not only its folder on PYTHONPATH, and see stderr."
    )


def platform() -> str:
    """Report the device that verl trains on, and why it was chosen."""
    import torch

    devices = local_devices()
    name = devices.kind
    build = "a CPU build" if not any((torch.version.cuda, torch.version.hip)) else "an accelerator build"
    requested = os.environ.get("VERL_PLATFORM")
    if not devices.count:
        reason = f"VERL_PLATFORM={requested}" if requested else "verl's own detection"
        raise InstallationError(
            f"{name} (by {reason}), but torch {torch.__version__}, {build}, finds no accelerator.",
            "Unset VERL_PLATFORM, or set it to cpu." if vllm_is_cpu_build() else NO_DEVICE,
        )
    if name == "cpu" and build == "a CPU build":
        return f"cpu, because torch {torch.__version__} is a CPU build"
    return f"{name}, because {f'VERL_PLATFORM={requested}' if requested else 'verl found it'}"


def hydra_groups() -> str:
    """Compose verl's configuration with each of our groups, as `verl.trainer.main_ppo +act=critic` does."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    groups = ("act=critic", "act=action", "act=action_ppo")
    GlobalHydra.instance().clear()
    with initialize_config_module("verl.trainer.config", version_base=None):
        for group in groups:
            try:
                compose("ppo_trainer", overrides=[f"+{group}"])
            except HydraException as error:
                raise InstallationError(
                    f"+{group} does not compose ({first_line(error)}).",
                    "Install the package itself, whose folder hydra_plugins puts the groups on Hydra's path.",
                ) from error
    return ", ".join(f"+{group}" for group in groups)


def in_ray_workers() -> str:
    """Check the registrations on every node of the cluster at $RAY_ADDRESS, or else of a new local one.

    A local cluster that $RAY_ADDRESS does not name is not used: Ray would connect to it and reject the options.
    """
    import ray
    from ray.exceptions import RayError

    from verl_act import __version__

    named = "RAY_ADDRESS" in os.environ
    local: dict[str, Any] = {} if named else {"address": "local", "num_cpus": 1, "include_dashboard": False}
    if named:
        _answers(os.environ["RAY_ADDRESS"])
    try:
        ray.init(log_to_driver=False, **local)
    except ConnectionError as error:
        raise InstallationError(
            f"Ray at RAY_ADDRESS={os.environ.get('RAY_ADDRESS')} refuses the connection ({_reason(error)}).",
            "A cluster started with `ray start` needs its token: set RAY_AUTH_MODE=token, and copy ~/.ray/auth_token "
            "from the head node.",
        ) from error
    try:
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        registered = ray.get([_on_node(node) for node in nodes], timeout=300)
    except RayError as error:
        raise InstallationError(
            f"a Ray worker cannot import verl and this package ({str(error).strip().splitlines()[-1]}).",
            "Install the same environment on every node of the cluster.",
        ) from error
    finally:
        ray.shutdown()
    for facts in registered:
        _complete(facts, f"in a Ray worker on {facts['host']}")
        if facts["version"] != __version__:
            raise InstallationError(
                f"{facts['host']} has verl_act {facts['version']}, this process {__version__}.",
                "Install the same environment on every node of the cluster.",
            )
    return f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}: {_complete(registered[0], '')}"


def _reason(error: BaseException) -> str:
    """The first line of the error at the root of the chain."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return first_line(error)


def _answers(address: str) -> None:
    """Check that something listens at `address`. Ray itself would retry for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:  # such as "auto"
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise InstallationError(
            f"nothing answers at RAY_ADDRESS={address} ({error}).",
            "Start the cluster (ray start --head), or unset RAY_ADDRESS.",
        ) from error


def _on_node(node: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(registrations).options(num_cpus=0, scheduling_strategy=here).remote()
