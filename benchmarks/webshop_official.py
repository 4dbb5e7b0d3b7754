"""Our WebShop against the official text environment: the same actions in both, awkward ones and awkward products too.

    git clone https://github.com/princeton-nlp/WebShop
    pip install flask==2.1.2 "werkzeug<2.2" beautifulsoup4==4.11.1 thefuzz==0.19.0
    python benchmarks/webshop_official.py WebShop [--episodes 1000]

Its `web_agent_site` runs as it is: sessions, pages, actions, reward. What it needs elsewhere is replaced: the search by
ours (`webshop_search.py` compares that), spaCy by our tagger, gym and torch, which it only imports. Compared on each
page are the observations `text` and `text_rich`, what can be clicked, whether the action led anywhere, reward and end.
Prints the totals, the first differences, and writes `results/webshop_official.json`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from verl_act.envs.webshop.catalogue import Catalogue, load_catalogue
from verl_act.envs.webshop.environment import WebShopEnvironment
from verl_act.envs.webshop.files import HUMAN_FILE, PRODUCT_FILE
from verl_act.envs.webshop.goals import list_goals, list_tasks
from verl_act.envs.webshop.make_catalogue import make_catalogue
from verl_act.envs.webshop.nouns import noun_tagger
from verl_act.settings.data import CatalogueSettings

RESULT = Path(__file__).parent / "results" / "webshop_official.json"

OPTIONS = [
    *('6" round', "café", "白色", 'a "b" c', "search", "Buy Now", "Description", "< Prev", "Next >", "Back to Search"),
    *(
        "10 [pack of 2]",
        "a]b",
        "[x",
        "men's",
        "<b>bold</b>",
        "&amp; co",
        "back\\slash",
        "red/",
        "tab\there",
        "two\nlines",
    ),
    *("color", "style", "red", "large", "", " ", "İstanbul", "½ lb", "b00"),
]
TEXTS = [
    *(
        "",
        " ",
        "\n",
        "two\nlines",
        "\n led by a line",
        "<br>bold & 'quoted' \"text\"",
        "&nbsp; &eacute;",
        "\ttab\r\nend",
    ),
    *("\u00a0", "\u3000", "emoji 😀™", "{{ 7 * 7 }}", "<!-- no comment -->", "a [SEP] b"),
]
ACTIONS = [
    *(
        "search[]",
        "search[ ]",
        "search[  ]",
        "search[a [b] c]",
        "search[a] b]",
        "search[x] click[buy now]",
        "search[[red]",
    ),
    *("search", "Search[red]", " search[red]", "search [red]", "search[red", "search[red].", "search[red]\nclick[x]"),
    *("search[tea\npot]", "\nsearch[red]", "search[\x00]", "search[\x07 red]", "search[\u200b]", "search[İ]"),
    *("search[red\r]", f"search[{'red ' * 400}]", f"search[{'x' * 1500}]", 'search["red"]', "search['red' \\ large]"),
    *(
        'search["café"]',
        'search["color"]',
        "click[]",
        "click[search]",
        "click[Search]",
        "click[BUY NOW]",
        "click[ buy now]",
    ),
    *(
        "click[buy now]]",
        "click[buy now] ",
        "click[buy now][x]",
        "xclick[buy now]",
        "click[click[buy now]]",
        "click[nothing]",
    ),
    *(
        "think[red]",
        "",
        " ",
        "[red]",
        "search[😀]",
        "search[<red>]",
        "search[red&blue]",
        "search[red+blue]",
        "search[%20]",
    ),
]


def awkward_catalogue(folder: Path) -> Path:
    """A generated catalogue whose products have awkward options and texts added."""
    make_catalogue(CatalogueSettings(products=150, instructions=4), folder)
    rng = random.Random(0)
    products = json.loads((folder / PRODUCT_FILE).read_text())
    for product in products:
        if rng.random() < 0.8:
            names = rng.sample(["Color", "color", "Style", 'si"ze', "größe", "search", "a[b]"], rng.randint(1, 3))
            values = [[{"value": value} for value in rng.sample(OPTIONS, rng.randint(1, 5))] for _ in names]
            product["customization_options"] = dict(zip(names, values, strict=True))
        for field in ("full_description", "name"):
            if rng.random() < 0.3:
                product[field] += rng.choice(TEXTS)
        if rng.random() < 0.2:
            product["full_description"] = rng.choice(TEXTS)
        product["small_description"] = rng.choices([*TEXTS, *product["small_description"]], k=rng.randint(1, 4))
    (folder / PRODUCT_FILE).write_text(json.dumps(products))
    return folder


def official_environment(checkout: Path, folder: Path, catalogue: Catalogue) -> Any:
    """WebShop's own text environment, with our goals, price draws, search and nouns."""
    tag = noun_tagger()
    asins = [catalogue.product(row).asin for row in range(len(catalogue))]

    class Searcher:
        def __init__(self, *_: Any) -> None: ...

        def search(self, text: str, k: int) -> list[Any]:
            return [SimpleNamespace(docid=row) for row in catalogue.search(text)]

        def doc(self, row: int) -> Any:
            return SimpleNamespace(raw=lambda: json.dumps({"id": asins[row]}))

    def tagged(name: str) -> list[Any]:
        return [SimpleNamespace(text=word, pos_="NOUN") for word in tag(name)]

    replaced: dict[str, dict[str, Any]] = {
        "gym": {"Env": object},
        "gym.envs": {},
        "gym.envs.registration": {"register": lambda **_: None},
        "web_agent_site.envs.web_agent_site_env": {"WebAgentSiteEnv": None},
        "torch": {},
        "cleantext": {},
        "rank_bm25": {"BM25Okapi": None},
        "spacy": {"load": lambda _: tagged},
        "pyserini": {},
        "pyserini.search": {},
        "pyserini.search.lucene": {"LuceneSearcher": Searcher},
    }
    for name, values in replaced.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(values)
    sys.path.insert(0, str(checkout))
    from web_agent_site import utils

    utils.DEFAULT_ATTR_PATH, utils.HUMAN_ATTR_PATH = str(folder / "items_ins_v2.json"), str(folder / HUMAN_FILE)
    from web_agent_site.envs import web_agent_text_env as site

    environment = site.WebAgentTextEnv("text", str(folder / PRODUCT_FILE), human_goals=1)
    environment.server.product_prices = {asin: catalogue.product(row).price for row, asin in enumerate(asins)}
    environment.server.goals = [
        {**asdict(goal), "instruction_text": goal.instruction, "goal_options": list(goal.options)}
        for goal in list_goals(catalogue)
    ]
    return environment


def pages(official: Any) -> tuple[str, str]:
    html = official.state["html"]
    return official.convert_html_to_text(html, simple=True), official.convert_html_to_text(html, simple=False)


def leads_somewhere(official: Any, action: str) -> bool:
    """Whether the official `step` acts on it, by its own conditions."""
    from web_agent_site.engine.engine import parse_action

    name, argument = parse_action(action)
    argument = argument and argument.lower()
    if name == "search":
        return bool(argument)
    return name == "click" and argument in official.get_available_actions()["clickables"] and argument != "search"


def play(official: Any, ours: dict[str, WebShopEnvironment], folder: Path, episodes: int) -> Iterator[tuple[str, Any]]:
    """What was compared (`steps` and so on), or what differs, with the evidence."""
    rng = random.Random(1)
    tasks = [task for split in ("test", "dev", "train") for task in list_tasks(split, folder)]
    words = " ".join(goal["instruction_text"] for goal in official.server.goals[:50]).split()
    for number in range(episodes):
        goal = number % len(tasks)
        official.session_prefix = f"{number}-"
        official.reset(session=goal)
        first = {style: environment.reset(tasks[goal]).observation for style, environment in ours.items()}
        if (first["text"], first["text_rich"]) != pages(official):
            yield "start page", (first, pages(official))
        for _ in range(rng.randint(4, 25)):
            clickables = official.get_available_actions()["clickables"]
            choice = rng.random()
            if choice < 0.25:
                action = rng.choice(ACTIONS)
            elif choice < 0.4 or not clickables:
                action = f"search[{' '.join(rng.choices(words, k=rng.randint(1, 4)))}]"
            else:
                action = f"click[{rng.choice(clickables)}]"
            expected = leads_somewhere(official, action)
            try:
                _, reward, done, _ = official.step(action)
            except Exception as error:
                yield "official crashes", (action, error)
                break
            yield "steps", None
            results = {style: environment.step(action) for style, environment in ours.items()}
            text, rich = results["text"], results["text_rich"]
            shown = pages(official)
            if (text.observation, rich.observation) != shown:
                style = "text_rich" if text.observation == shown[0] else "text"
                yield f"observation {style}", (action, results[style].observation, shown[style == "text_rich"])
            if (text.admissible, text.reward, text.done) != (expected, reward, done):
                yield "result", (action, text.admissible, text.reward, text.done, expected, reward, done)
            if done or text.done:
                break
            offered = {f"click[{name}]" for name in official.get_available_actions()["clickables"]}
            offered = {click for click in offered if leads_somewhere(official, click)}
            listed = set(text.admissible_actions)
            if listed != offered and "click[back to search]" in listed | offered:
                yield "clickables", (action, listed ^ offered)
            if shown != (text.observation, rich.observation):
                break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--episodes", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = awkward_catalogue(Path(made, "catalogue"))
        catalogue = load_catalogue(folder)
        official = official_environment(options.checkout, folder, catalogue)
        styles = ("text", "text_rich")
        ours = {style: WebShopEnvironment(folder, max_steps=100, observation=style) for style in styles}
        totals: Counter[str] = Counter(episodes=options.episodes)
        for kind, evidence in play(official, ours, folder, options.episodes):
            totals[kind] += 1
            if evidence is not None and totals[kind] <= 3:
                print(kind, *(repr(one) for one in evidence), sep="\n    ")
    print(dict(totals))
    RESULT.write_text(json.dumps(dict(totals), indent=2) + "\n")


if __name__ == "__main__":
    main()
