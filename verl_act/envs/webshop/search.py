"""Product search with the results of WebShop's, which is Lucene 8 by Pyserini: BM25 with k1 = 0.9 and b = 0.4.

Three things decide the order of hits next to the formula, and are Lucene's here too: the length of a document counts as
one byte holds it (exact up to 40 terms, then to about a tenth), scores are summed as 64-bit numbers and compared as
32-bit ones, and equal scores go by product id. `benchmarks/webshop_search.py` compares with Lucene itself.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from verl_act.envs.webshop.analysis import Analyzer

MOST_HITS = 50
"""Products that a search returns at most."""
MOST_TERMS = 1024
"""Different terms that Lucene's queries take at most."""

_K1, _B = np.float32(0.9), np.float32(0.4)  # the defaults of Pyserini, which WebShop searches with
_CHUNK = 1 << 22
"""Scores computed at a time."""


def _byte_lengths() -> np.ndarray:
    """The lengths that a byte stands for (Lucene's `SmallFloat.byte4ToInt`): 0 to 23, then 24 and a number of four bits
    with an exponent.
    """
    floats = [(8 + mantissa) << exponent for exponent in range(28) for mantissa in range(8)]
    return np.array([*range(24), *(24 + number for number in (*range(8), *floats))][:256], dtype=np.int64)


_LENGTHS = _byte_lengths()


def _length_bytes(lengths: np.ndarray) -> np.ndarray:
    """The byte that Lucene stores for each length (`SmallFloat.intToByte4`): that of the next lower one that it has."""
    return np.searchsorted(_LENGTHS, lengths, side="right") - 1


class _Arrays(NamedTuple):
    """What an index holds, and the names of its files. The scores of term t are those at ends[t] to ends[t + 1]."""

    ends: np.ndarray  # int64, one more than there are terms
    documents: np.ndarray  # int32
    scores: np.ndarray  # float32
    ranks: np.ndarray  # int32: the place of each document in the order of ids


_VOCABULARY = "terms.txt"


def is_searchable(text: str) -> bool:
    """Whether WebShop's search takes the text: up to `MOST_TERMS` different terms, and no halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return len(text) <= MOST_TERMS or len(set(Analyzer().terms(text))) <= MOST_TERMS


class SearchIndex:
    """Finds documents, known by their row. About 8 bytes a document and distinct term."""

    def __init__(self, vocabulary: dict[str, int], arrays: _Arrays) -> None:
        self._vocabulary = vocabulary
        self._arrays = arrays
        self._analyzer = Analyzer()

    @classmethod
    def build(cls, documents: Iterable[tuple[str, str]]) -> SearchIndex:
        """Index `documents`, ids with texts, which are read once."""
        analyzer = Analyzer()
        vocabulary: dict[str, int] = {}
        ids: list[str] = []
        terms, frequencies = array("i"), array("i")
        ends, lengths = array("q", [0]), array("q")
        for document, text in documents:
            ids.append(document)
            counts = Counter(analyzer.terms(text))
            terms.extend([vocabulary.setdefault(term, len(vocabulary)) for term in counts])
            frequencies.extend(counts.values())
            ends.append(len(terms))
            lengths.append(counts.total())
        by_term = csr_array(
            (np.frombuffer(frequencies, np.int32), np.frombuffer(terms, np.int32), np.frombuffer(ends, np.int64)),
            shape=(len(ids), len(vocabulary)),
        ).tocsc()
        scores = _scores(by_term.data, by_term.indices, by_term.indptr, np.frombuffer(lengths, np.int64))
        ranks = np.empty(len(ids), np.int32)
        ranks[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids), dtype=np.int32)
        arrays = _Arrays(by_term.indptr.astype(np.int64), by_term.indices.astype(np.int32), scores, ranks)
        return cls(vocabulary, arrays)

    def search(self, text: str) -> tuple[int, ...]:
        """The rows of the best documents, best first: at most `MOST_HITS`, and only such as hold a term of `text`.

        Equal scores fall in the order of ids.
        """
        query = Counter(term for term in self._analyzer.terms(text) if term in self._vocabulary)
        if not query:
            return ()
        ends, documents, scores, ranks = self._arrays
        sums = np.zeros(len(ranks))
        for term, count in query.items():
            number = self._vocabulary[term]
            of_term = slice(ends[number], ends[number + 1])
            sums[documents[of_term]] += scores[of_term] * np.float32(count)
        total = sums.astype(np.float32)
        most = min(MOST_HITS, len(total))
        least = max(np.partition(total, -most)[-most], np.finfo(total.dtype).tiny)
        hits = np.flatnonzero(total >= least)
        return tuple(hits[np.lexsort((ranks[hits], -total[hits]))[:most]].tolist())

    def save(self, folder: Path) -> None:
        """Write the index into `folder`."""
        folder.mkdir()
        for name, values in self._arrays._asdict().items():
            np.save(folder / f"{name}.npy", values)
        (folder / _VOCABULARY).write_text("".join(f"{term}\n" for term in self._vocabulary), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> SearchIndex:
        """An index that `save` wrote. Its large arrays stay on disk and are shared by all processes that read them."""
        terms = (folder / _VOCABULARY).read_text(encoding="utf-8").split("\n")[:-1]
        arrays = _Arrays(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in _Arrays._fields))
        return cls({term: number for number, term in enumerate(terms)}, arrays)


def _scores(frequencies: np.ndarray, documents: np.ndarray, ends: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The score of each term in each document that has it, in the steps and the precision of Lucene's `BM25Similarity`.

    `frequencies` and `documents` are in the order of terms, those of term t at ends[t] to ends[t + 1]. Documents
    without terms do not count.
    """
    not_empty = max(1, np.count_nonzero(lengths))
    mean = np.float32(max(1, lengths.sum() / not_empty))
    one = np.float32(1)
    norms = one / (_K1 * ((one - _B) + _B * _LENGTHS.astype(np.float32) / mean))
    norm_of = norms[_length_bytes(lengths)]
    document_frequencies = np.diff(ends)
    weights = np.log(1 + (not_empty - document_frequencies + 0.5) / (document_frequencies + 0.5)).astype(np.float32)
    scores = np.repeat(weights, document_frequencies)
    for start in range(0, len(scores), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        weight, norm = scores[chunk], norm_of[documents[chunk]]
        scores[chunk] = weight - weight / (one + frequencies[chunk].astype(np.float32) * norm)
    return scores
