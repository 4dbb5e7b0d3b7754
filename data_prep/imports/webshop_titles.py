"""Products that a published row clicks by their title, as WebShop's human demonstrations do, found on the page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from verl_act.envs.base import Environment
from verl_act.errors import EnvError
from verl_act.parse import normalise

_CLICK = re.compile(r"click\[item - (.*)\]", re.IGNORECASE | re.DOTALL)  # titles may hold brackets themselves


class NoSuchProduct(EnvError):
    """A title is not that of exactly one product on the page."""


def title_clicked(action: str) -> str | None:
    """The title in `click[item - <title>]`; None for any other action."""
    found = _CLICK.fullmatch(action)
    return found[1] if found else None


def click_by_title(title: str, environment: Environment, settings: Mapping[str, Any]) -> str:
    """`click[<asin>]` for the product of this title on the page of results that `environment` shows. Titles are
    compared as `normalise` writes them: the demonstrations are in lower case. Raises `NoSuchProduct`.
    """
    from verl_act.envs.webshop.catalogue import load_catalogue
    from verl_act.envs.webshop.environment import WebShopEnvironment
    from verl_act.envs.webshop.session import Page

    assert isinstance(environment, WebShopEnvironment)
    state = environment.snapshot().state
    if state.page is not Page.RESULTS:
        raise NoSuchProduct(f"{title!r} is clicked on a page that lists no products ({state.page})")
    catalogue = load_catalogue(settings.get("data"))  # the environment's own: they are shared within a process
    listed = [catalogue.product(row) for row in state.listed()]
    wanted = normalise(title)
    found = [product.asin.lower() for product in listed if normalise(product.name) == wanted]
    if not found:
        raise NoSuchProduct(
            f"{title!r} is the title of none of the {len(listed)} products on page {state.number} of the results; the "
            "row needs the catalogue that it was made with, and a search that ranks it alike"
        )
    if len(found) > 1:
        raise NoSuchProduct(
            f"{title!r} is the title of {len(found)} products on page {state.number} of the results "
            f"({', '.join(found)}), and the row does not say which"
        )
    return f"click[{found[0]}]"
