"""Product search with the same results as WebShop's, which is Lucene 8 through Pyserini: BM25, k1 = 0.9, b = 0.4.

Besides the formula, three details decide the order of hits, as in Lucene: document lengths are rounded to one byte
(exact up to 40 terms, then to about a tenth), scores are summed in 64 bits and compared in 32 bits, and ties are broken
by product id. `benchmarks/webshop_search.py` compares with Lucene itself.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from verl_act.envs.webshop.analysis import index_terms

MOST_HITS = 50
"""Maximum count of products that a search returns."""
MOST_TERMS = 1024
"""Maximum count of different terms in a query of Lucene."""

_K1, _B = np.float32(0.9), np.float32(0.4)  # defaults of Pyserini, which WebShop uses
_CHUNK = 1 << 22
"""Scores computed at once."""


_FLOATS = [(8 + mantissa) << exponent for exponent in range(28) for mantissa in range(8)]
LENGTHS = np.array([*range(24), *(24 + value for value in (*range(8), *_FLOATS))][:256], dtype=np.int64)
"""Byte -> the length that it stands for (Lucene's `SmallFloat.byte4ToInt`): 0 to 23, then 24 plus a 4-bit float."""


def length_bytes(lengths: np.ndarray) -> np.ndarray:
    """Return the byte that Lucene stores for each length (`SmallFloat.intToByte4`), rounding down."""
    return np.searchsorted(LENGTHS, lengths, side="right") - 1


class _Arrays(NamedTuple):
    """The arrays of an index; their names are its file names. The scores of term t are at ends[t] to ends[t + 1]."""

    ends: np.ndarray  # int64, one more than there are terms
    documents: np.ndarray  # int32
    scores: np.ndarray  # float32
    ranks: np.ndarray  # int32: the rank of each document in the order of ids


_VOCABULARY = "terms.txt"


def is_searchable(text: str) -> bool:
    """Whether WebShop's search accepts the text: at most `MOST_TERMS` different terms, and no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return len(text) <= MOST_TERMS or len(set(index_terms(text))) <= MOST_TERMS


class SearchIndex:
    """Searches documents and returns their rows. Takes about 8 bytes per document and distinct term."""

    def __init__(self, vocabulary: dict[str, int], arrays: _Arrays) -> None:
        self._vocabulary = vocabulary
        self._arrays = arrays

    @classmethod
    def build(cls, documents: Iterable[tuple[str, str]]) -> SearchIndex:
        """Index `documents`, pairs of id and text, which are read once."""
        vocabulary: dict[str, int] = {}
        ids: list[str] = []
        terms, frequencies = array("i"), array("i")
        ends, lengths = array("q", [0]), array("q")
        for document, text in documents:
            ids.append(document)
            counts = Counter(index_terms(text))
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
        """Return the rows of the best documents, best first: at most `MOST_HITS`, all with at least one term of `text`.

        Ties are in the order of ids.
        """
        query = Counter(term for term in index_terms(text) if term in self._vocabulary)
        if not query:
            return ()
        ends, documents, scores, ranks = self._arrays
        sums = np.zeros(len(ranks))
        for term, count in query.items():
            index = self._vocabulary[term]
            of_term = slice(ends[index], ends[index + 1])
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
        """Load an index written by `save`. Its large arrays stay on disk, shared by all processes that map them."""
        terms = (folder / _VOCABULARY).read_text(encoding="utf-8").split("\n")[:-1]
        arrays = _Arrays(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in _Arrays._fields))
        return cls({term: index for index, term in enumerate(terms)}, arrays)


def _scores(frequencies: np.ndarray, documents: np.ndarray, ends: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the score of each term in each of its documents, in the steps and precision of Lucene's `BM25Similarity`.

    `frequencies` and `documents` are sorted by term, those of term t at ends[t] to ends[t + 1]; the result has the same
    shape. Documents without terms do not count.
    """
    not_empty = max(1, np.count_nonzero(lengths))
    mean = np.float32(max(1, lengths.sum() / not_empty))
    one = np.float32(1)
    norms = one / (_K1 * ((one - _B) + _B * LENGTHS.astype(np.float32) / mean))
    norm_of = norms[length_bytes(lengths)]
    document_frequencies = np.diff(ends)
    weights = np.log(1 + (not_empty - document_frequencies + 0.5) / (document_frequencies + 0.5)).astype(np.float32)
    scores = np.repeat(weights, document_frequencies)
    for start in range(0, len(scores), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        weight, norm = scores[chunk], norm_of[documents[chunk]]
        scores[chunk] = weight - weight / (one + frequencies[chunk].astype(np.float32) * norm)
    return scores
