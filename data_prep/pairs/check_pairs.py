"""Audit pair files: can a model predict the label from anything other than the quality of the actions?

Each check gives a finding. An error fails the audit; a warning needs a human decision. Pairs are checked as the model
will see them, with the template and the order of candidates used in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from verl_act.data.order import expert_positions
from verl_act.data_prep.pairs import giveaways
from verl_act.data_prep.pairs.probe import MIN_PAIRS, ProbeResult, probe_pairs
from verl_act.envs.registry import installed_env
from verl_act.errors import DataError
from verl_act.parse import match_action, normalise, verb
from verl_act.progress import phase
from verl_act.prompts import Template
from verl_act.schema import Pair, pair_id, read_pairs
from verl_act.settings.data import AuditOptions, AuditSettings

_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """The result of one check. `level` is `ok`, `warning`, `error`, or `skipped` if there was nothing to check."""

    check: str
    level: str
    text: str


@dataclass(frozen=True, slots=True)
class AuditReport:
    """All findings for a number of pairs."""

    pairs: int
    findings: tuple[AuditFinding, ...]
    probe: ProbeResult | None = None
    """Of the held-out pairs, or cross-validated; None if there are too few pairs."""

    @property
    def errors(self) -> tuple[AuditFinding, ...]:
        return tuple(finding for finding in self.findings if finding.level == "error")

    def table(self) -> str:
        """The findings as text, one line each, worst first."""
        worst_first = sorted(
            self.findings, key=lambda finding: ("error", "warning", "skipped", "ok").index(finding.level)
        )
        width = max(len(finding.check) for finding in self.findings)
        rows = [f"{finding.level:<8} {finding.check:<{width}}  {finding.text}" for finding in worst_first]
        return "\n".join([f"{self.pairs} pairs checked", *rows])


def check_pairs(settings: AuditSettings, out: None = None) -> AuditReport:
    """Audit pair files that are used together for training. Their tasks must not occur in the held-out pair files.

    The template, its options and the seed are those of `data.act`. Raises `DataError` if a file cannot be read or there
    are no pairs.
    """
    template = settings.make_template()
    pairs, others = read_pairs(settings.pairs), read_pairs(settings.held_out)
    if not pairs:
        raise DataError(f"{', '.join(map(str, settings.pairs))}: no pairs to check.")
    probe = probe_pairs(pairs, others if len(others) >= MIN_PAIRS else ())
    findings = [
        _leakage(pairs, others),
        *(_by_rule(rule, pairs) for rule in _RULES),
        _repeats(pairs),
        _balance(pairs, settings.seed, settings),
        _label_words(pairs, template),
        _length(pairs, settings),
        _verb(pairs, settings),
        _shortcuts(probe, settings),
    ]
    return AuditReport(len(pairs), tuple(findings), probe)


def check_settings(settings: AuditSettings) -> None:
    """Raise `ConfigError` for an invalid setting."""
    settings.make_template()


def _skipped(check: str, feature: str, pairs: Sequence[Pair]) -> AuditFinding:
    """The finding if no pair has the feature that is checked."""
    return AuditFinding(check, "skipped", f"{feature} for 0 of {len(pairs)} pairs")


def _finding(check: str, bad: Sequence[str], ok: str, level: str = "error") -> AuditFinding:
    """`ok` if nothing is bad, otherwise `level` with the count and the first examples."""
    if not bad:
        return AuditFinding(check, "ok", ok)
    examples = "; ".join(bad[:_EXAMPLES])
    return AuditFinding(check, level, f"{len(bad)}: {examples}{'; ...' if len(bad) > _EXAMPLES else ''}")


def _leakage(pairs: Sequence[Pair], held_out: Sequence[Pair]) -> AuditFinding:
    splits: dict[tuple[str, str], set[str]] = {}
    for pair in pairs:
        splits.setdefault((pair.env, pair.task_id), set()).add(pair.split)
    leaked = [
        f"task {task} is in splits {', '.join(sorted(names))}" for (_, task), names in splits.items() if len(names) > 1
    ]
    held_out_tasks = {(pair.env, pair.task_id) for pair in held_out}
    leaked += [f"task {task} is held out" for env, task in splits if (env, task) in held_out_tasks]
    if not held_out and len(set().union(*splits.values())) == 1:
        return AuditFinding("task leakage", "skipped", "all pairs are of one split, and no held-out pairs are given")
    overlap = f"none in the {len(held_out)} held-out pairs" if held_out else "no held-out pairs are given"
    return _finding("task leakage", leaked, f"{len(splits)} tasks, each in one split, {overlap}")


@dataclass(frozen=True, slots=True)
class _Rule:
    """A check of each pair by itself."""

    check: str
    """The name of the check."""
    is_bad: Callable[[Pair], bool]
    ok: str
    """The text of the finding if no pair is bad."""
    applies: Callable[[Pair], bool] = lambda pair: True
    """Which pairs are checked."""
    feature: str = "texts compared"
    """What the checked pairs have."""
    level: str = "error"


def _has_list(pair: Pair) -> bool:
    """An empty list of admissible actions means that the list is unknown."""
    return bool(pair.context.admissible_actions)


def _unlisted(action: str, pair: Pair) -> bool:
    """Whether the environment is known to list all admissible actions, and `action` is not in the pair's list."""
    spec = installed_env(pair.env)
    lists_all = spec is not None and spec.lists_all_actions
    return lists_all and match_action(action, pair.context.admissible_actions) is None


_RULES = (
    _Rule(
        "same action",
        lambda pair: len({*map(normalise, (pair.expert_action, *pair.alternatives))}) <= len(pair.alternatives),
        "no alternative equals the expert's action or another alternative",
    ),
    _Rule(
        "expert's action admissible",
        lambda pair: _unlisted(pair.expert_action, pair),
        "every expert action is in its state's list",
        _has_list,
        "admissible actions listed",
    ),
    _Rule(
        "admissible flag",
        lambda pair: any(
            _unlisted(action, pair) if flag else match_action(action, pair.context.admissible_actions) is not None
            for action, flag in pair.judged_admissible.items()
        ),
        "every flag agrees with its state's list",
        _has_list,
        "admissible actions listed",
    ),
    _Rule(
        "pair id",
        lambda pair: pair.pair_id != pair_id(pair.state_id, pair.expert_action, *pair.alternatives),
        "every id is that of its content",
    ),
    _Rule(
        "margin",
        lambda pair: pair.margin is not None and pair.margin <= 0,
        "no alternative is as good as the expert's",
        lambda pair: pair.margin is not None,
        "margin measured",
        "warning",
    ),
)


def _by_rule(rule: _Rule, pairs: Sequence[Pair]) -> AuditFinding:
    checked = [pair for pair in pairs if rule.applies(pair)]
    if not checked:
        return _skipped(rule.check, rule.feature, pairs)
    share = "" if len(checked) == len(pairs) else f" ({rule.feature} for {len(checked)} of {len(pairs)} pairs)"
    bad = [
        f"pair {pair.pair_id} ({pair.expert_action!r}, {pair.alternative_action!r})"
        for pair in checked
        if rule.is_bad(pair)
    ]
    return _finding(rule.check, bad, f"{rule.ok}{share}", rule.level)


def _repeats(pairs: Iterable[Pair]) -> AuditFinding:
    seen: set[tuple[str, ...]] = set()
    repeated = []
    for pair in pairs:
        key = (pair.state_id, *sorted(map(normalise, pair.alternatives)))
        if key in seen:
            repeated.append(f"{pair.alternative_action!r} at state {pair.state_id}")
        seen.add(key)
    return _finding("duplicates", repeated, "no alternative occurs twice at a state")


def _balance(pairs: Sequence[Pair], seed: int, bounds: AuditOptions) -> AuditFinding:
    """Check how often `order: hash` puts the expert first. One pair more or less per candidate count is fine."""
    counts = [1 + len(pair.alternatives) for pair in pairs]
    share = float((expert_positions([pair.pair_id for pair in pairs], counts, seed) == 0).mean())
    fair = sum(1 / count for count in counts) / len(pairs)
    text = f"the expert's action is shown first in {share:.1%} of rows"
    one_more = sum(1 - 1 / count for count in set(counts)) / len(pairs)
    off = abs(share - fair) > max(bounds.max_order_imbalance, one_more) + 1e-9  # a share exactly on the bound passes
    return AuditFinding("position", "error" if off else "ok", text)


def _label_words(pairs: Sequence[Pair], template: Template) -> AuditFinding:
    checked = phase("checking prompts", len(pairs), "pair", pairs)
    leaks = [f"{word!r} at pair {pair.pair_id}" for pair in checked if (word := giveaways.label_word(pair, template))]
    return _finding("label words", leaks, "prompts and actions name no label")


def _length(pairs: Sequence[Pair], bounds: AuditOptions) -> AuditFinding:
    if all(len(pair.expert_action) == len(other) for pair in pairs for other in pair.alternatives):
        return _skipped("length", "actions of different length", pairs)
    longer = giveaways.accuracy(pairs, lambda action: len(action))
    which, accuracy = ("longer", longer) if longer >= 0.5 else ("shorter", 1 - longer)
    text = f"choosing the {which} action is right in {accuracy:.1%} (bound {bounds.max_length_accuracy:.0%})"
    return AuditFinding("length", "error" if accuracy > bounds.max_length_accuracy else "ok", text)


def _verb(pairs: Sequence[Pair], bounds: AuditOptions) -> AuditFinding:
    if all(verb(pair.expert_action) == verb(other) for pair in pairs for other in pair.alternatives):
        return _skipped("verb", "actions with different verbs", pairs)
    preferred, accuracy = giveaways.best_verb(pairs)
    text = f"preferring or avoiding {preferred!r} is right in {accuracy:.1%} (bound {bounds.max_verb_accuracy:.0%})"
    return AuditFinding("verb", "warning" if accuracy > bounds.max_verb_accuracy else "ok", text)


def _shortcuts(probe: ProbeResult | None, bounds: AuditOptions) -> AuditFinding:
    if probe is None:
        return AuditFinding("shortcuts", "skipped", f"a probe needs {MIN_PAIRS} training pairs of several tasks")
    text = f"a probe on shallow features is right in {probe.accuracy:.1%} (bound {bounds.max_probe_accuracy:.0%})"
    if probe.hard_accuracy is not None:
        text += f", in {probe.hard_accuracy:.1%} of the {probe.hard.sum()} hard ones"
    useful = [f"{name} ({lost:.1%})" for name, lost in list(probe.importance.items())[:_EXAMPLES] if lost > 0]
    text += f", of {len(probe.outcomes)} pairs; most useful: {', '.join(useful) or 'none'}"
    return AuditFinding("shortcuts", "warning" if probe.accuracy > bounds.max_probe_accuracy else "ok", text)
