"""Gap: a Ray that a run starts listens on every network interface of the machine.

Ray binds to the loopback interface only if that is the node's address, and `ray.init` replaces a `_node_ip_address` of
127.0.0.1 by the machine's network address. One variable, the default on macOS and Windows, prevents that; Ray reads it
on import. If `$RAY_ADDRESS` names a cluster in the network, nothing changes.

Upstream change it waits for: `ray.init(_node_ip_address="127.0.0.1")` taken as it stands where it starts a cluster
(`resolve_ip_for_localhost` in ray/_private/worker.py). `act/device=cpu` then sets `_node_ip_address`.
"""

import os
from types import ModuleType

import wrapt

VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def _on_this_machine() -> bool:
    address = os.environ.get("RAY_ADDRESS") or "local"
    return address.startswith(("local", "127.", "[::1]"))


# The variable is for the processes that this one starts; here Ray may have read it already.
if _on_this_machine() and os.environ.setdefault(VARIABLE, "0") == "0":

    @wrapt.when_imported("ray._private.ray_constants")
    def disable_cluster(module: ModuleType) -> None:
        module.ENABLE_RAY_CLUSTER = False  # type: ignore[attr-defined]
