"""WebShop's catalogue: official files read as WebShop reads them, its cache, and damaged data."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_shop import MUG, TEAPOT, mugs, product, write_shop
from typer.testing import CliRunner

from verl_act.__main__ import app
from verl_act.envs.webshop import catalogue as catalogue_module
from verl_act.envs.webshop.catalogue import load_catalogue
from verl_act.envs.webshop.goals import SPLITS, list_goals, list_tasks
from verl_act.envs.webshop.make_catalogue import make_catalogue
from verl_act.errors import ConfigError, DataError
from verl_act.manifest import read_manifest
from verl_act.settings.data import CatalogueSettings

pytest_plugins = "small_shop"


def test_the_embedded_catalogue_is_the_same_everywhere(tmp_path: Path) -> None:
    """A change of this digest makes every figure measured on the catalogue another one."""
    make_catalogue(CatalogueSettings(), tmp_path / "made")
    whole = hashlib.sha256()
    for name in ("items_shuffle.json", "items_ins_v2.json", "items_human_ins.json"):
        whole.update((tmp_path / "made" / name).read_bytes())
    assert whole.hexdigest()[:16] == "5926125b21074927"
    embedded = load_catalogue()
    assert list_goals(load_catalogue(tmp_path / "made")) == list_goals(embedded)
    assert [len(list_tasks(split)) for split in SPLITS] == [2500, 1000, 500]


def test_seeds_make_other_catalogues(tmp_path: Path) -> None:
    arguments = ["dev", "catalogue", "--products", "40", "--instructions", "2", "--out"]
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        result = CliRunner().invoke(app, [*arguments, str(tmp_path / name), "--seed", seed])
        assert result.exit_code == 0, result.output
    contents = {name: (tmp_path / name / "items_shuffle.json").read_bytes() for name in "abc"}
    assert contents["a"] == contents["b"] != contents["c"]
    manifest = read_manifest(tmp_path / "a")
    assert manifest is not None and manifest.counts["goals"] == {"train": 40, "dev": 26, "test": 14}
    with pytest.raises(ConfigError, match="--products"):
        make_catalogue(CatalogueSettings(products=1, instructions=2), tmp_path / "none")


def test_an_official_file_is_read_as_webshop_reads_it(tmp_path: Path) -> None:
    products = [
        TEAPOT,
        {**TEAPOT, "name": "its twin, left out"},
        {**MUG, "asin": "nan"},
        {**MUG, "asin": "B0TOOLONGID"},
        {**MUG, "asin": "B000RANGED", "pricing": "$1,005.10$2,500", "small_description": "one text"},
        {**MUG, "asin": "B0000UNREAD", "asin_": 1, "name": "half a \ud83d smile", "full_description": None},
    ]
    products[-1]["asin"] = "B000BROKEN"
    shop = write_shop(tmp_path, products, small=True)
    catalogue = load_catalogue(shop)
    teapot, ranged, broken = (catalogue.product(row) for row in range(len(catalogue)))
    assert teapot == product()
    assert ranged.price_tag == "$1005.1 to $2500.0" and 1005.1 <= ranged.price <= 2500
    assert ranged.bullets == ("one text",) and ranged.options == () and ranged.attributes == ("DUMMY_ATTR",)
    assert broken.name == "half a ? smile" and broken.price_tag == "$100.0"
    assert load_catalogue(shop / "items_shuffle_1000.json") is catalogue


def test_a_large_catalogue_is_prepared_once(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    in_memory = load_catalogue(shop)
    monkeypatch.setattr(catalogue_module, "CACHED_FROM", 0)
    monkeypatch.setenv("VERL_ACT_CACHE", str(tmp_path))
    copy = write_shop(tmp_path / "shop", [*mugs(7), TEAPOT, *mugs(14)[7:]])
    mapped = load_catalogue(copy)
    catalogue_module.load_files.cache_clear()
    again = load_catalogue(copy)
    assert mapped is not again and caplog.text.count("building the cache") == 1
    for catalogue in (mapped, again):
        assert list_goals(catalogue) == list_goals(in_memory) and len(catalogue) == 15
        assert catalogue.search("stoneware teapot") == in_memory.search("stoneware teapot")
        assert [catalogue.product(row) for row in range(15)] == [in_memory.product(row) for row in range(15)]
    (copy / "items_shuffle.json").write_text(json.dumps([TEAPOT]))
    assert len(load_catalogue(copy)) == 1
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VERL_ACT_CACHE", str(tmp_path / "file"))
    catalogue_module.load_files.cache_clear()
    with pytest.raises(DataError, match="VERL_ACT_CACHE"):
        load_catalogue(copy)


@pytest.fixture
def cached_shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shop whose catalogue has been prepared in the cache `tmp_path / "cache"`."""
    monkeypatch.setattr(catalogue_module, "CACHED_FROM", 0)
    monkeypatch.setenv("VERL_ACT_CACHE", str(tmp_path / "cache"))
    shop = write_shop(tmp_path / "shop", [TEAPOT, *mugs(14)])
    load_catalogue(shop)
    catalogue_module.load_files.cache_clear()
    return shop


def cache_of(shop: Path) -> Path:
    (folder,) = (path for path in (shop.parent / "cache" / "webshop").iterdir() if path.is_dir())
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_bit(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 4
    path.write_bytes(contents)


@pytest.mark.parametrize("damage", [cut, flip_a_bit, Path.unlink, lambda path: path.write_text("")])
def test_a_damaged_cache_is_named_deleted_and_rebuilt(
    damage: Any, cached_shop: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, whole = cache_of(cached_shop), load_catalogue(cached_shop).search("stoneware teapot")
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(names) == 10
    for name in names:
        catalogue_module.load_files.cache_clear()
        caplog.clear()
        damage(folder / name)
        catalogue = load_catalogue(cached_shop)
        assert f"{folder}: the cache was" in caplog.text and "is rebuilt" in caplog.text, name
        assert catalogue.search("stoneware teapot") == whole and len(list_goals(catalogue)) == 3


@pytest.mark.parametrize("change", ["a file in its place", "another version", "other products", "unreadable"])
def test_a_cache_of_something_else_is_rebuilt(change: str, cached_shop: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = cache_of(cached_shop)
    if change == "a file in its place":
        shutil.rmtree(folder)
        folder.write_text("")
    elif change == "another version":
        contents = json.loads((folder / "cache.json").read_text())
        contents["made_from"]["regex"] = "1.0"
        (folder / "cache.json").write_text(json.dumps(contents))
    elif change == "other products":
        write_shop(cached_shop, [*mugs(3), TEAPOT])
    else:
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "cache.json").mkdir()
    caplog.clear()
    assert len(load_catalogue(cached_shop)) == (4 if change == "other products" else 15)
    assert "is rebuilt" in caplog.text and str(folder) in caplog.text
    assert cache_of(cached_shop) == folder, "the former one is not left behind"


def test_two_processes_prepare_a_cache_once(tmp_path: Path) -> None:
    shop = write_shop(tmp_path / "shop", [TEAPOT, *mugs(14)])
    code = (
        "import sys; from verl_act.envs.webshop import catalogue; catalogue.CACHED_FROM = 0; "
        "print(len(catalogue.load_catalogue(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(shop)]
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, "VERL_ACT_CACHE": str(tmp_path / "cache")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    printed = [process.communicate() for process in started]
    assert [out for out, _ in printed] == ["15\n"] * 2
    assert sum("building the cache" in errors for _, errors in printed) == 1


def test_a_cache_that_cannot_be_written_is_used_while_it_is_whole(
    cached_shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For root, who may write anywhere: no lock can be where a folder is, and no folder where a file is."""
    cache_of(cached_shop).with_suffix(".lock").mkdir()
    assert load_catalogue(cached_shop).search("teapot")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VERL_ACT_CACHE", str(tmp_path / "file"))
    catalogue_module.load_files.cache_clear()
    with pytest.raises(DataError, match=r"file.*VERL_ACT_CACHE"):
        load_catalogue(cached_shop)


def damaged(name: str, folder: Path) -> Path:
    """A shop with one thing wrong with it."""
    write_shop(folder, [TEAPOT, MUG])
    products = folder / "items_shuffle.json"
    whole = json.dumps([TEAPOT, *mugs(3)])
    texts = {
        "truncated": whole[: len(whole) // 2],
        "no array": '{"a": 1}',
        "garbage": "\x00\x01" * 1000,
        "trailing": whole + "]",
        "no comma": f"{json.dumps([TEAPOT])[:-1]} {json.dumps(MUG)}]",
        "nested": "[" * 100_000,
        "empty": "",
        "no product": "[]",
        "no name": json.dumps([TEAPOT, {**mugs(1)[0], "name": None}]),
        "bad price": json.dumps([TEAPOT, {**mugs(1)[0], "pricing": "free"}]),
        "bad options": json.dumps([{**TEAPOT, "customization_options": {"color": ["red"]}}]),
        "a number": "[1]",
    }
    if name in texts:
        products.write_text(texts[name])
    elif name == "not text":
        products.write_bytes(b"\xff\xfe[]")
    elif name == "bad attributes":
        (folder / "items_ins_v2.json").write_text('{"B00TEAPOT1": {"attributes": [1]}}')
    elif name == "bad instructions":
        (folder / "items_human_ins.json").write_text('{"B00TEAPOT1": [{"instruction": "x"}]}')
    elif name == "no attribute file":
        (folder / "items_ins_v2.json").unlink()
    elif name == "no product file":
        products.unlink()
    return folder


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("truncated", r"items_shuffle\.json, line 1: is not JSON .* at entry 1\."),
        ("no array", r"items_shuffle\.json: .*a JSON list"),
        ("garbage", r"items_shuffle\.json: "),
        ("trailing", r"items_shuffle\.json, line 1: is not JSON \(Extra data"),
        ("no comma", r"items_shuffle\.json, .* ',' .* at entry 0"),
        ("nested", r"items_shuffle\.json, .*deeply\), at entry 0"),
        ("empty", r"items_shuffle\.json: "),
        ("no product", r"items_shuffle\.json: contains no product"),
        ("no name", r"items_shuffle\.json: entry 1: field 'name'"),
        ("bad price", r"items_shuffle\.json: entry 1: field 'pricing' is 'free'"),
        ("bad options", r"items_shuffle\.json: entry 0: field 'customization_options'"),
        ("a number", r"items_shuffle\.json: entry 0: "),
        ("not text", r"items_shuffle\.json.*UTF-8"),
        ("bad attributes", r"items_ins_v2\.json: key 'B00TEAPOT1'"),
        ("bad instructions", r"items_human_ins\.json: key 'B00TEAPOT1'"),
        ("no attribute file", r"items_ins_v2\.json: no such file"),
        ("no product file", r"items_shuffle\.json: no such file"),
    ],
)
def test_damaged_data_are_named_with_a_remedy(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says) as caught:
        load_catalogue(damaged(name, tmp_path / "shop"))
    assert any(remedy in str(caught.value) for remedy in ("dev", "catalogue", "Download", "Save it as UTF-8"))


def test_a_shop_without_goals_says_so(tmp_path: Path) -> None:
    shop = write_shop(tmp_path, [MUG], {}, {})
    with pytest.raises(DataError, match=r"human goals.*goals='synthetic'"):
        list_tasks("train", shop)
    with pytest.raises(DataError, match="'valid'"):
        list_tasks("valid", tmp_path / "nowhere")
