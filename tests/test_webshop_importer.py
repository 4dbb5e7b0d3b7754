"""WebShop's human demonstrations (arXiv 2207.01206), in rows of their format made from our own expert's episodes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from published_rows import Row, expert_trajectories, rejections

from verl_act.data_prep.imports.import_trajectories import TRAJECTORIES, import_trajectories
from verl_act.data_prep.imports.published import Unreadable, read_published
from verl_act.envs.importer import Published
from verl_act.envs.webshop.catalogue import Catalogue, load_catalogue
from verl_act.envs.webshop.files import PRODUCT_FILE
from verl_act.envs.webshop.importer import WebShopImporter
from verl_act.envs.webshop.make_catalogue import make_catalogue
from verl_act.schema import Step, read_steps
from verl_act.settings.data import CatalogueSettings, ImportSettings


def titles(catalogue: Catalogue) -> dict[str, str]:
    """What a demonstration calls the click on a product."""
    products = map(catalogue.product, range(len(catalogue)))
    return {f"click[{product.asin.lower()}]": f"click[item - {product.name.lower()}]" for product in products}


def demonstration(steps: Sequence[Step], translated: Callable[[str], str], **others: object) -> Row:
    """A row as WebShop's repository has it: pages in its rich style, clicks by asin and again by title."""
    first, *later = (step.context for step in steps)
    asked = re.sub(r"lower than [\d.]+", "lower than 990.00", first.goal)
    start = f"Amazon Shopping Game\nInstruction: \n{asked}\n[button] Search [button_]"
    return {
        "states": [start, *(page.observation for page in later)],
        "actions": [step.action for step in steps],
        "actions_translate": [translated(step.action) for step in steps],
        "action_idxs": [-1 if step.action.startswith("search[") else 0 for step in steps],
        "available_actions": [[], *([translated(step.action)] for step in steps[1:])],
        "images": [0, *([0.25] * 4 for _ in later)],
        **others,
    }


def without(row: Row, *keys: str) -> Row:
    return {key: value for key, value in row.items() if key not in keys}


def lines(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_demonstrations_are_known_by_their_keys_and_replayed(tmp_path: Path) -> None:
    """On the embedded catalogue, in the format that is the default of the command."""
    by_asin, by_title, lower = expert_trajectories("webshop", "train", 3, {})
    named = titles(load_catalogue())
    assert any(step.action in named for step in by_title)

    def called(action: str) -> str:
        return named.get(action, action)

    capitals = json.loads(json.dumps(demonstration(lower, called)).replace("Instruction: ", "instruction: "))
    capitals["actions_translate"] = [f"{text.upper().replace('CLICK', 'click')}\n" for text in map(called, acts(lower))]
    capitals["actions_translate"][0] = acts(lower)[0]
    rows = [
        demonstration(by_asin, called),
        without(demonstration(by_title, called), "actions"),
        without(capitals, "actions", "images"),
    ]
    path = lines(tmp_path / "il_trajs.jsonl", rows)
    manifest = import_trajectories(
        ImportSettings(files=[path], env="webshop", workers=0, format="eto"), tmp_path / "out"
    )
    steps = read_steps([tmp_path / "out" / TRAJECTORIES])
    assert [step.action for step in steps] == [*acts(by_asin), *acts(by_title), *acts(lower)]
    assert all(step.source == "webshop-human" and step.verified and step.success for step in steps)
    assert all(step.thought is None and step.admissible for step in steps)
    assert manifest.counts["trajectories"] == 3 and rejections(tmp_path / "out") == {}


def acts(steps: Sequence[Step]) -> list[str]:
    return [step.action for step in steps]


def test_a_title_that_is_not_on_the_page_rejects_its_row(tmp_path: Path) -> None:
    won, other = expert_trajectories("webshop", "train", 2, {})
    named = titles(load_catalogue())
    row = demonstration(won, lambda action: named.get(action, action))

    def replayed(*actions: str) -> Row:
        return {**row, "actions": actions}

    search, buy = acts(won)[0], acts(won)[-1]
    title = next(named[action] for action in acts(won) if action in named)
    rows = [
        row,
        replayed(search, "click[item - a unicorn [pink]]", buy),
        replayed(title, search, buy),
        replayed(search, buy),
        {**demonstration(other, str), "states": ["WebShop\nInstruction:\ni want a unicorn\n[button] Search [button_]"]},
        row,
    ]
    path = lines(tmp_path / "il_trajs.jsonl", rows)
    import_trajectories(
        ImportSettings(files=[path], env="webshop", format="webshop-human", workers=0), tmp_path / "out"
    )
    assert acts(read_steps([tmp_path / "out" / TRAJECTORIES])) == acts(won)
    reasons = rejections(tmp_path / "out")
    assert reasons.keys() == {1, 2, 3, 4, 5}
    assert "no such product on the page: 'a unicorn [pink]' matches none of the 10 products on" in reasons[1]
    assert "is clicked on a page that lists no products (Search)" in reasons[2]
    assert "does not reach the goal" in reasons[3]
    assert "no such task in these data: i want a unicorn" in reasons[4]
    assert "another row of this task is kept" in reasons[5]


def test_a_title_of_two_products_rejects_its_row_and_an_asin_does_not(tmp_path: Path) -> None:
    make_catalogue(CatalogueSettings(products=60, instructions=2, seed=5), tmp_path / "shop")
    products = json.loads((tmp_path / "shop" / PRODUCT_FILE).read_text())
    copies = [{**product, "asin": f"C{product['asin'][1:]}"} for product in products]
    (tmp_path / "shop" / PRODUCT_FILE).write_text(json.dumps(products + copies))
    settings = {"data": str(tmp_path / "shop")}
    (won,) = expert_trajectories("webshop", "train", 1, settings)
    named = titles(load_catalogue(tmp_path / "shop"))
    row = demonstration(won, lambda action: named.get(action, action))
    path = lines(tmp_path / "il_trajs.jsonl", [without(row, "actions"), row])
    import_trajectories(
        ImportSettings(files=[path], env="webshop", env_settings=settings, workers=0, format="eto"), tmp_path / "out"
    )
    assert acts(read_steps([tmp_path / "out" / TRAJECTORIES])) == acts(won)
    ((number, reason),) = rejections(tmp_path / "out").items()
    assert number == 0
    assert re.search(r"no such product on the page: '.*' matches 2 products .*\(b\w+, c\w+\)", reason)


GOOD = {"states": ["Instruction:\ni want a mug"], "actions": ["search[mug]"], "action_idxs": [-1]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**GOOD, "actions": "search[mug]"}, "'actions' must be a non-empty list, not 'search[mug]'"),
        ({**GOOD, "actions": []}, "'actions' must be a non-empty list, not []"),
        ({**GOOD, "actions": [None]}, "'actions' must be a list of strings"),
        ({**GOOD, "actions": ["\ud83d"]}, "surrogates not allowed"),
        (
            {**without(GOOD, "actions"), "actions_translate": 3},
            "'actions_translate' must be a non-empty list, not 3",
        ),
        (without(GOOD, "actions"), "has no 'actions'"),
        ({**GOOD, "states": {}}, "'states' must be a non-empty list, not {}"),
        ({**GOOD, "states": [["Instruction:"]]}, "'states' must be a list of strings"),
        ({**GOOD, "states": ["WebShop"]}, "its first state shows no 'Instruction:' but 'WebShop'"),
    ],
)
@pytest.mark.parametrize("form", ["eto", "early-experience", "webshop-human"])
def test_a_malformed_demonstration_is_listed(row: Row, reason: str, form: str, tmp_path: Path) -> None:
    bad, good = read_published(lines(tmp_path / "rows.jsonl", [row, GOOD]), form, WebShopImporter)
    assert isinstance(bad, Unreadable) and reason in bad.reason and "the format 'webshop-human'" in bad.reason
    assert isinstance(good, Published) and good.actions == ("search[mug]",) and good.format_name == "webshop-human"


def test_rows_of_another_format_may_have_pages_too(tmp_path: Path) -> None:
    """Only the keys of that format decide on them."""
    row = {"instruction": "i want a mug", "actions": ["search[bowl]"], "states": ["WebShop"], "action_idxs": [-1]}
    (read,) = read_published(lines(tmp_path / "rows.jsonl", [row]), "actions", WebShopImporter)
    assert isinstance(read, Published) and read.format_name is None and read.instruction == "i want a mug"
    (read,) = read_published(
        lines(tmp_path / "rows.jsonl", [without(row, "instruction")]), "webshop-human", WebShopImporter
    )
    assert isinstance(read, Unreadable)
    (read,) = read_published(lines(tmp_path / "rows.jsonl", [{"states": ["Instruction: mug"]}]), "eto", WebShopImporter)
    assert isinstance(read, Unreadable) and "has no 'conversations'" in read.reason
