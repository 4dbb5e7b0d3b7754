"""Gap: verl opens its process group with the backend "cpu:gloo,<device>:<backend>".

On the CPU platform that names cpu twice, which torch refuses. The module's lookup of the device name returns "cuda"
instead: torch then opens one gloo group and uses it for both device types, and no cuda tensor ever appears.

Upstream change it waits for: plain "gloo" in verl/utils/distributed.py when the device is the cpu.
"""

from typing import Any

from verl_act.upstream_gaps import wrap_when_imported


@wrap_when_imported("verl.utils.distributed:get_device_name")
def device_name(*_: Any) -> str:
    return "cuda"
