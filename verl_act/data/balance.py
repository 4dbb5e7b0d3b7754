"""How often a training pair is shown, so that its verbs alone do not tell the better action."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def repeats(verbs: Sequence[tuple[str, str]], most: int) -> np.ndarray:
    """Times to show each pair; int64, shape [pairs]. `verbs` are those of (expert's action, alternative).

    Among the pairs of two verbs, one is usually the expert's: "move" beats "go" five times in six. A policy learns that
    rule first, is then sure of it, and GRPO has nothing to go by where the rule is wrong. Pairs of the rarer direction
    are therefore repeated until both are about as frequent, but never more than `most` times.
    """
    counts = Counter(verbs)
    times = {
        (better, worse): max(1, min(most, round(counts[worse, better] / count)))
        for (better, worse), count in counts.items()
    }
    return np.array([times[pair] for pair in verbs], dtype=np.int64)
