"""WebShop: shopping by instruction in a shop of text pages, with its reward, search and data formats.

`files` and `sources` read the official data, `embedded` generates a catalogue without them. `catalogue`, `search` (with
`analysis` and `stemmer`) and `goals` hold what all episodes share, and `cache` keeps it on disk. `actions`, `session`,
`pages` and `reward` (with `nouns`) implement the shop. `planner` finds the shortest action sequence; `reading` and
`shopper` implement the expert that sees only the pages.
"""

from verl_act.envs.base import ASSETS, EnvSpec
from verl_act.envs.webshop.dialect import DIALECT
from verl_act.envs.webshop.environment import WebShopEnvironment
from verl_act.envs.webshop.experts import GoalExpert
from verl_act.envs.webshop.goals import NAME, SPLITS, list_tasks, prepare
from verl_act.envs.webshop.importer import WebShopImporter
from verl_act.envs.webshop.session import is_search
from verl_act.envs.webshop.shopper import ShopperExpert
from verl_act.envs.webshop.sources import data_digest
from verl_act.names import counts_text


def check_catalogue() -> str:
    """The number of goals in the embedded catalogue, which is built on first use."""
    return f"{counts_text({split: len(list_tasks(split)) for split in SPLITS})} (the embedded catalogue)"


SPEC = EnvSpec(
    name=NAME,
    make=WebShopEnvironment,
    tasks=list_tasks,
    data_digest=data_digest,
    experts={"shopper": ShopperExpert, "goal": GoalExpert},
    splits=SPLITS,
    lists_all_actions=False,
    always_admissible=is_search,
    prepare=prepare,
    importer=WebShopImporter,
    dialect=DIALECT,
    models={"embedded": ASSETS / "embedded_model_webshop"},
    doctor=check_catalogue,
)

__all__ = ["SPEC"]
