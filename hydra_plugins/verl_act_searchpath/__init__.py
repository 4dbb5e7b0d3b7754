"""Puts `verl_act.config` on Hydra's search path, so that `+act=critic` works in any verl command, from any folder."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class VerlActSearchPath(SearchPathPlugin):
    """Found by Hydra itself, through the `hydra_plugins` namespace."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="verl-act", path="pkg://verl_act.config")
