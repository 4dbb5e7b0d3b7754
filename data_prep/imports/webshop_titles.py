"""Resolve clicks on product titles, as in WebShop's human demonstrations, to the products on the page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from verl_act.envs.base import Environment
from verl_act.errors import EnvError
from verl_act.parse import normalise

_CLICK = re.compile(r"click\[item - (.*)\]", re.IGNORECASE | re.DOTALL)  # titles may contain brackets


class NoSuchProduct(EnvError):
    """Not exactly one product on the page has this title."""


def title_clicked(action: str) -> str | None:
    """Return the title in `click[item - <title>]`; None for any other action."""
    match = _CLICK.fullmatch(action)
    return match[1] if match else None


def click_by_title(title: str, environment: Environment, settings: Mapping[str, Any]) -> str:
    """Return `click[<asin>]` for the product with this title on the current page of results of `environment`. Titles
    are compared after `normalise`, since the demonstrations are in lower case. Raises `NoSuchProduct`.
    """
    from verl_act.envs.webshop.catalogue import load_catalogue
    from verl_act.envs.webshop.environment import WebShopEnvironment
    from verl_act.envs.webshop.session import Page

    assert isinstance(environment, WebShopEnvironment)
    state = environment.snapshot().state
    if state.page is not Page.RESULTS:
        raise NoSuchProduct(f"{title!r} is clicked on a page that lists no products ({state.page})")
    catalogue = load_catalogue(
        settings.get("data")
    )  # the one that the environment uses: catalogues are shared within a process
    listed = [catalogue.product(row) for row in state.listed()]
    normalised = normalise(title)
    asins = [product.asin.lower() for product in listed if normalise(product.name) == normalised]
    if not asins:
        raise NoSuchProduct(
            f"{title!r} matches none of the {len(listed)} products on page {state.page_number} of the results; the "
            "row needs the catalogue that it was made with, and a search that ranks products the same way"
        )
    if len(asins) > 1:
        raise NoSuchProduct(
            f"{title!r} matches {len(asins)} products on page {state.page_number} of the results "
            f"({', '.join(asins)}), and the row does not say which"
        )
    return f"click[{asins[0]}]"
