"""How often to show each training pair, so that verbs alone do not reveal the better action."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def repeats(verbs: Sequence[tuple[str, str]], most: int) -> np.ndarray:
    """Times to show each pair; int64, shape [pairs]. `verbs`: those of (expert's action, alternative).

    Of two verbs, one is usually the expert's: "move" beats "go" five times in six. A policy learns that rule first and
    becomes certain, which leaves GRPO no signal where the rule is wrong. Pairs of the rarer direction are therefore
    repeated until both are about equally frequent, at most `most` times.
    """
    counts = Counter(verbs)
    times = {
        (better, worse): max(1, min(most, round(counts[worse, better] / count)))
        for (better, worse), count in counts.items()
    }
    return np.array([times[pair] for pair in verbs], dtype=np.int64)
