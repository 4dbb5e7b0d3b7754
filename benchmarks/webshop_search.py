"""Our product search against Lucene itself, which WebShop searches with: terms, hits and their order.

    apt-get download liblucene8-java && dpkg -x liblucene8-java_*.deb lucene   # on Debian 12
    python benchmarks/webshop_search.py lucene [--products 50000] [--data FOLDER]

The folder is where `lucene-core-8*.jar` and `lucene-analyzers-common-8*.jar` lie; JDK 11 or later compiles
`LuceneSearch.java` beside this file, which analyzes, scores and orders as Pyserini 0.17 does, the version that WebShop
asks for (its Lucene is 8.11). Compared are the embedded catalogue and a generated one with descriptions as long as the
official ones, or WebShop's own files in `--data`; queries are the searches that goals suggest, product names, and
random words of products. `texts` are random strings of letters, digits, marks, emoji and several alphabets, whose
terms are compared. Prints a table and writes `results/webshop_search.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from time import process_time
from typing import Any

from webshop_engine import lengthen

from verl_act.envs.webshop.analysis import index_terms
from verl_act.envs.webshop.catalogue import Catalogue, load_catalogue
from verl_act.envs.webshop.goals import list_goals
from verl_act.envs.webshop.instruction import likely_search
from verl_act.envs.webshop.make_catalogue import make_catalogue
from verl_act.settings.data import CatalogueSettings

HERE = Path(__file__).parent
RESULT = HERE / "results" / "webshop_search.json"
QUERIES = 1000
TEXTS = 20_000
_ASCII = "abs12_.,:;'-/&() \"#*"
_UNICODE = _ASCII + "é’‘™®©²½①ªЯя白ひカタ한글ไท😀👍🏽❤\ufe0f\u200d🇩🇪\u0301·０（）：，。…–—•°\u200b\u00a0\u00ad×★✔→"


class Lucene:
    """`LuceneSearch.java` beside this file."""

    def __init__(self, jars: Path, folder: Path) -> None:
        found = [next(iter(sorted(jars.rglob(f"lucene-{name}-8*.jar"))), None) for name in ("core", "analyzers-common")]
        if None in found:
            raise SystemExit(f"{jars}: has no lucene-core-8*.jar and lucene-analyzers-common-8*.jar.")
        self.version = str(found[0].stem.rpartition("-")[2])  # type: ignore[union-attr]
        self._folder = folder
        self._classes = ":".join(map(str, (folder, *found)))
        subprocess.run(["javac", "-d", folder, "-cp", self._classes, HERE / "LuceneSearch.java"], check=True)

    def _run(self, lines: Sequence[str], *arguments: object) -> list[list[str]]:
        command = ["java", "-cp", self._classes, "LuceneSearch", *map(str, arguments)]
        given = "".join(f"{line}\n" for line in lines)
        printed = subprocess.run(command, input=given, check=True, stdout=subprocess.PIPE, text=True).stdout
        return [line.split("\t") if line else [] for line in printed.split("\n")[:-1]]

    def terms(self, texts: Sequence[str]) -> list[list[str]]:
        return self._run(texts, "terms")

    def search(self, catalogue: Catalogue, queries: Sequence[str]) -> tuple[list[list[str]], int]:
        """The ids that each query finds, and the milliseconds that all of them took."""
        documents = self._folder / "documents.tsv"
        with documents.open("w", encoding="utf-8") as lines:
            for row in range(len(catalogue)):
                product = catalogue.product(row)
                lines.write(f"{product.asin}\t{' '.join(product.indexed_text().split())}\n")
        with tempfile.TemporaryDirectory() as index:
            *hits, (milliseconds,) = self._run(queries, "search", documents, index)
        return hits, int(milliseconds)


def queries_for(catalogue: Catalogue) -> Iterator[str]:
    """A third each: what goals suggest, product names, and random words of products."""
    rng = random.Random(0)
    goals = list_goals(catalogue)
    for _ in range(QUERIES // 3):
        yield likely_search(rng.choice(goals).instruction)
        yield catalogue.product(rng.randrange(len(catalogue))).name
        words = catalogue.product(rng.randrange(len(catalogue))).indexed_text().split()
        yield " ".join(rng.choice(words) for _ in range(rng.randint(1, 6)))


def compare(lucene: Lucene, catalogue: Catalogue) -> dict[str, Any]:
    """The share of queries (percent) whose results are Lucene's: the best, the first page in order, all in order."""
    queries = [" ".join(query.lower().split()) for query in queries_for(catalogue)]
    theirs, milliseconds = lucene.search(catalogue, queries)
    started = process_time()
    rows = [catalogue.search(query) for query in queries]
    seconds = process_time() - started
    ours = [[catalogue.product(row).asin for row in found] for found in rows]
    pairs = list(zip(theirs, ours, strict=True))

    def share(same: Sequence[bool]) -> float:
        return round(100 * sum(same) / len(same), 2)

    return {
        "products": len(catalogue),
        "queries": len(queries),
        "best": share([first[:1] == second[:1] for first, second in pairs]),
        "first_page": share([first[:10] == second[:10] for first, second in pairs]),
        "all_hits": share([first == second for first, second in pairs]),
        "ms": round(1000 * seconds / len(queries), 2),
        "lucene_ms": round(milliseconds / len(queries), 2),
    }


def compare_terms(lucene: Lucene) -> dict[str, Any]:
    """The share of random texts (percent) that have Lucene's terms."""
    rng, found = random.Random(0), {}
    for name, letters in (("ascii", _ASCII), ("unicode", _UNICODE)):
        texts = ["".join(rng.choices(letters, k=rng.randint(1, 12))).lower() for _ in range(TEXTS)]
        same = [index_terms(text) == terms for text, terms in zip(texts, lucene.terms(texts), strict=True)]
        found[name] = round(100 * sum(same) / TEXTS, 2)
    return {"texts": TEXTS, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("lucene", type=Path)
    parser.add_argument("--products", type=int, default=50_000)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VERL_ACT_CACHE"] = folder
        lucene = Lucene(options.lucene, Path(folder))
        terms = compare_terms(lucene)
        print(f"the same terms: {terms['ascii']}% of ASCII texts, {terms['unicode']}% of others")
        large = options.data or Path(folder, "catalogue")
        if not options.data:
            make_catalogue(CatalogueSettings(products=options.products, instructions=1), large)
            lengthen(large)
        catalogues = {}
        for name, catalogue in (("embedded", load_catalogue()), ("large", load_catalogue(large))):
            catalogues[name] = found = compare(lucene, catalogue)
            print(name, json.dumps(found))
    tools = {"lucene": lucene.version, **{name: version(name) for name in ("numpy", "scipy", "regex")}}
    tools["python"] = platform.python_version()
    RESULT.write_text(json.dumps({"tools": tools, "terms": terms, "catalogues": catalogues}, indent=2) + "\n")


if __name__ == "__main__":
    main()
