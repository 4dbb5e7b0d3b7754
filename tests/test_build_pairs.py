"""Pairs from real games: what is built, and what is left out."""

from dataclasses import replace
from pathlib import Path

import pytest

from verl_act.data_prep.pairs import giveaways
from verl_act.data_prep.pairs.build_pairs import build_pairs
from verl_act.data_prep.pairs.check_pairs import check_pairs
from verl_act.data_prep.pairs.margins import ReplayError, TrajectoryReplayer
from verl_act.envs.alfworld.environment import AlfworldEnvironment
from verl_act.envs.base import EnvSpec, Observation, StepResult, Task
from verl_act.envs.registry import get_env, register_env
from verl_act.errors import ConfigError, DataError, EnvError
from verl_act.manifest import read_manifest
from verl_act.parse import normalise
from verl_act.schema import (
    ALTERNATIVES,
    TRAJECTORY,
    Alternatives,
    Step,
    read_pairs,
    read_steps,
    write_rows,
)
from verl_act.settings.data import AuditSettings, PairsSettings


@pytest.fixture(scope="module")
def few(steps: list[Step]) -> list[Step]:
    """Those of three trajectories."""
    names = list(dict.fromkeys(step.trajectory_id for step in steps))[:3]
    return [step for step in steps if step.trajectory_id in names]


@pytest.fixture(scope="module")
def replies(steps: list[Step], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each state: the expert's action (shouted), all admissible ones, one twice, an impossible one, no tag."""
    path = tmp_path_factory.mktemp("replies") / "alternatives.parquet"
    rows = []
    for step in steps:
        actions = [
            step.action.upper(),
            *step.context.admissible_actions,
            step.context.admissible_actions[0],
            "fly away",
        ]
        texts = ["no tag at all", *(f"<think>So.</think><action>{action}</action>" for action in actions)]
        rows.append(Alternatives(state_id=step.state_id, replies=tuple(texts), model="m", sampling="{}").to_row())
    write_rows(path, rows, ALTERNATIVES)
    return path


def test_alternatives_are_worse_and_different(games: Path, trajectories: Path, replies: Path, tmp_path: Path) -> None:
    manifest = build_pairs(
        PairsSettings(
            trajectories=[trajectories],
            alternatives=[replies],
            env_settings={"data": str(games)},
            max_alternatives_per_state=100,
            workers=0,
        ),
        tmp_path / "pairs",
    )
    pairs = read_pairs([tmp_path / "pairs" / "pairs.parquet"])
    counts = manifest.counts
    assert read_manifest(tmp_path / "pairs") == manifest
    assert counts["pairs"] == len(pairs) == len({pair.pair_id for pair in pairs})
    assert all(pair.margin is not None and pair.margin > 0 for pair in pairs)
    assert all(normalise(pair.alternative_action) != normalise(pair.expert_action) for pair in pairs)
    assert all(pair.alternative_source == "policy" and pair.model == "m" for pair in pairs)
    # Each reply is accounted for: "no tag", and the expert's action both shouted and in the admissible list.
    assert counts["replies_malformed_no_tag"] == counts["states"]
    assert counts["replies"] == counts["pairs"] + counts["alternatives_no_worse_than_the_expert"] + sum(
        counts[f"replies_{reason}"] for reason in ("malformed_no_tag", "equal_to_expert", "duplicate")
    )
    refused = [pair for pair in pairs if not pair.alternative_admissible]
    assert {pair.alternative_action for pair in refused} == {"fly away"}
    assert counts["pairs_inadmissible"] == len(refused) > 0
    assert not check_pairs(AuditSettings(pairs=[tmp_path / "pairs" / "pairs.parquet"])).errors


def test_processes_share_trajectories_and_change_nothing(games: Path, trajectories: Path, tmp_path: Path) -> None:
    settings = {"env_settings": {"data": str(games)}, "source": "admissible", "inferable_only": True}
    made = [
        build_pairs(PairsSettings(trajectories=[trajectories], workers=workers, **settings), tmp_path / str(workers))
        for workers in (1, 2)
    ]
    assert made[0].counts == made[1].counts
    one, two = ((tmp_path / name / "pairs.parquet").read_bytes() for name in "12")
    assert one == two


def test_margins_are_those_of_a_fresh_replay(games: Path, trajectories: Path, tmp_path: Path) -> None:
    build_pairs(
        PairsSettings(
            trajectories=[trajectories], env_settings={"data": str(games)}, source="admissible", limit=12, workers=0
        ),
        tmp_path / "pairs",
    )
    spec = get_env("alfworld")
    tasks = {task.task_id: task for task in spec.tasks("train", **{"data": str(games)})}
    for pair in read_pairs([tmp_path / "pairs" / "pairs.parquet"]):
        plans = []
        for action in (pair.expert_action, pair.alternative_action):
            environment = spec.make(**{"data": str(games)})
            environment.reset(tasks[pair.task_id])
            for turn in pair.context.history:
                environment.step(turn.action)
            result = environment.step(action)
            plans.append(0 if result.success else environment.plan_length())
            environment.close()
        assert pair.margin == plans[1] - plans[0]


def test_trying_an_alternative_costs_a_step(games: Path, trajectories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a replay of the trajectory."""
    taken = []
    step = AlfworldEnvironment.step
    monkeypatch.setattr(AlfworldEnvironment, "step", lambda self, action: taken.append(action) or step(self, action))
    steps = read_steps([trajectories])
    walked = [entry for entry in steps if entry.trajectory_id == steps[-1].trajectory_id]
    replayer = TrajectoryReplayer("alfworld", {"data": str(games)})
    for state in replayer.replay(walked):
        for action in state.step.context.admissible_actions[:3]:
            state.outcome(action)
    replayer.close()
    assert len(taken) == (3 + 1) * len(walked) - 1, "the last step leads to no state"


def test_the_same_seed_gives_the_same_bytes(games: Path, trajectories: Path, tmp_path: Path) -> None:
    files = []
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        build_pairs(
            PairsSettings(
                trajectories=[trajectories],
                env_settings={"data": str(games)},
                source="admissible",
                seed=seed,
                limit=20,
                workers=0,
            ),
            tmp_path / name,
        )
        files.append((tmp_path / name / "pairs.parquet").read_bytes())
    assert files[0] == files[1] != files[2]


def test_an_admissible_action_stands_in_where_the_policy_fails(
    games: Path, trajectories: Path, steps: list[Step], tmp_path: Path
) -> None:
    rows = [
        Alternatives(state_id=step.state_id, replies=("nothing readable",), model="m", sampling="{}").to_row()
        for step in steps
    ]
    write_rows(tmp_path / "alternatives.parquet", rows, ALTERNATIVES)
    build_pairs(
        PairsSettings(
            trajectories=[trajectories],
            alternatives=[tmp_path / "alternatives.parquet"],
            env_settings={"data": str(games)},
            max_alternatives_per_state=3,
            workers=0,
        ),
        tmp_path / "pairs",
    )
    pairs = read_pairs([tmp_path / "pairs" / "pairs.parquet"])
    assert {pair.alternative_source for pair in pairs} == {"admissible"}
    assert {pair.model for pair in pairs} == {""}
    assert len({pair.state_id for pair in pairs}) == len(pairs)


def test_alternatives_of_the_experts_verb_and_length_come_first(
    games: Path, trajectories: Path, replies: Path, tmp_path: Path
) -> None:
    """Every reply to choose from is in `replies`; margins may leave none of the expert's verb."""
    matched = {}
    for first in (True, False):
        files = {"trajectories": [trajectories], "alternatives": [replies]}
        settings = PairsSettings(**files, env_settings={"data": str(games)}, workers=0, matched_first=first)
        counts = build_pairs(settings, tmp_path / str(first)).counts
        pairs = read_pairs([tmp_path / str(first) / "pairs.parquet"])
        matched[first] = {pair.state_id: giveaways.matched(pair) for pair in pairs}
        assert counts["pairs_matched"] == sum(matched[first].values())
    assert matched[True].keys() == matched[False].keys()
    assert all(matched[True][state] for state, alike in matched[False].items() if alike)
    assert sum(matched[True].values()) > 1.5 * sum(matched[False].values())


def test_without_stand_ins_a_state_without_a_usable_reply_has_no_pair(
    games: Path, trajectories: Path, steps: list[Step], tmp_path: Path
) -> None:
    texts = ["nothing readable", f"<action>{steps[1].context.admissible_actions[0]}</action>"]
    rows = [
        Alternatives(state_id=step.state_id, replies=(text,), model="m", sampling="{}").to_row()
        for step, text in zip(steps, [texts[0], *texts[1:] * len(steps)], strict=False)
    ]
    write_rows(tmp_path / "alternatives.parquet", rows, ALTERNATIVES)
    settings = {"stand_ins": False, "keep_nonpositive_margin": True}
    files = {"trajectories": [trajectories], "alternatives": [tmp_path / "alternatives.parquet"]}
    build_pairs(PairsSettings(**files, env_settings={"data": str(games)}, workers=0, **settings), tmp_path / "pairs")
    pairs = read_pairs([tmp_path / "pairs" / "pairs.parquet"])
    expected = {step.state_id for step in steps[1:] if step.action != steps[1].context.admissible_actions[0]}
    assert {pair.state_id for pair in pairs} == expected
    assert {pair.alternative_source for pair in pairs} == {"policy"}


def test_the_share_of_inadmissible_alternatives_is_bounded(
    games: Path, trajectories: Path, replies: Path, tmp_path: Path
) -> None:
    for share in (0.0, 0.05):
        manifest = build_pairs(
            PairsSettings(
                trajectories=[trajectories],
                alternatives=[replies],
                env_settings={"data": str(games)},
                max_alternatives_per_state=100,
                max_inadmissible_share=share,
                workers=0,
            ),
            tmp_path / "pairs",
        )
        assert manifest.counts["pairs_inadmissible"] <= share * manifest.counts["pairs"]
        assert manifest.counts["alternatives_inadmissible_beyond_the_share"] > 0


def test_without_replay_margins_are_unknown(trajectories: Path, tmp_path: Path) -> None:
    build_pairs(
        PairsSettings(trajectories=[trajectories], source="admissible", margins=False, inferable_only=True, workers=0),
        tmp_path / "pairs",
    )
    pairs = read_pairs([tmp_path / "pairs" / "pairs.parquet"])
    assert all(pair.margin is None and pair.inferable and pair.alternative_admissible for pair in pairs)


class Bare:
    """The real environment, offering no more than every environment must."""

    def __init__(self, data: str) -> None:
        self._whole = get_env("alfworld").make(data=data)

    def reset(self, task: Task) -> Observation:
        return self._whole.reset(replace(task, env="alfworld"))

    def step(self, action: str) -> StepResult:
        return self._whole.step(action)

    def close(self) -> None:
        self._whole.close()


class Planning(Bare):
    """One that can plan, but cannot return to a snapshot."""

    def plan_length(self) -> int | None:
        return self._whole.plan_length()  # type: ignore[attr-defined]


def _tasks(split: str, data: str) -> list[Task]:
    return [replace(task, env="elsewhere") for task in get_env("alfworld").tasks(split, data=data)]


@pytest.mark.parametrize("kind", [Bare, Planning])
def test_other_environments_are_replayed(kind: type[Bare], games: Path, few: list[Step], tmp_path: Path) -> None:
    name = kind.__name__.lower()
    register_env(EnvSpec(name, kind, _tasks, {}, ("train",)))
    write_rows(tmp_path / "steps.parquet", [replace(step, env=name).to_row() for step in few], TRAJECTORY)
    write_rows(tmp_path / "real.parquet", [step.to_row() for step in few], TRAJECTORY)
    for file in ("steps", "real"):
        build_pairs(
            PairsSettings(
                trajectories=[tmp_path / f"{file}.parquet"],
                env_settings={"data": str(games)},
                source="admissible",
                workers=0,
            ),
            tmp_path / file,
        )
    pairs, real = (read_pairs([tmp_path / file / "pairs.parquet"]) for file in ("steps", "real"))
    if kind is Planning:
        assert [replace(pair, env="alfworld") for pair in pairs] == real
    else:
        assert {pair.margin for pair in pairs} == {None}
        assert len(pairs) == len(few)


class Drifting(Bare):
    """From its second reset on it plays another game, so that coming back leads elsewhere."""

    def __init__(self, data: str) -> None:
        super().__init__(data)
        self._resets = 0
        self._last = get_env("alfworld").tasks("train", data=data)[-1]

    def reset(self, task: Task) -> Observation:
        self._resets += 1
        return super().reset(task if self._resets == 1 else self._last)


def test_no_action_is_judged_in_another_state_than_its_own(games: Path, steps: list[Step], tmp_path: Path) -> None:
    register_env(EnvSpec("drifting", Drifting, _tasks, {}, ("train",)))
    one = [replace(step, env="drifting") for step in steps if step.trajectory_id == steps[0].trajectory_id]
    state = next(TrajectoryReplayer("drifting", {"data": str(games)}).replay(one))
    state.judge(one[0].action)  # in the state itself
    with pytest.raises(ReplayError, match="#0"):
        state.judge(one[0].action)


def test_a_trajectory_that_does_not_replay_is_left_out(games: Path, few: list[Step], tmp_path: Path) -> None:
    first = few[0].trajectory_id
    changed = [
        replace(step, context=replace(step.context, observation="A dragon appears."))
        if step.trajectory_id == first
        else step
        for step in few
    ]
    with pytest.raises(ReplayError, match="#0"):
        next(TrajectoryReplayer("alfworld", {"data": str(games)}).replay(changed[:1]))
    write_rows(tmp_path / "steps.parquet", [step.to_row() for step in changed], TRAJECTORY)
    manifest = build_pairs(
        PairsSettings(
            trajectories=[tmp_path / "steps.parquet"], env_settings={"data": str(games)}, source="admissible", workers=0
        ),
        tmp_path / "pairs",
    )
    assert manifest.counts["trajectories_not_replayed"] == 1
    built = {pair.state_id.split("#")[0] for pair in read_pairs([tmp_path / "pairs" / "pairs.parquet"])}
    assert first not in built and built


def test_a_trajectory_on_which_the_environment_fails_costs_no_other(
    games: Path, few: list[Step], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = few[0].task_id
    reset = AlfworldEnvironment.reset

    def fails(environment: AlfworldEnvironment, task: Task) -> Observation:
        if task.task_id == broken:
            raise EnvError("its game file is damaged")
        return reset(environment, task)

    monkeypatch.setattr(AlfworldEnvironment, "reset", fails)
    write_rows(tmp_path / "steps.parquet", [step.to_row() for step in few], TRAJECTORY)
    out = tmp_path / "pairs"
    counts = build_pairs(
        PairsSettings(
            trajectories=[tmp_path / "steps.parquet"],
            alternatives=[],
            env_settings={"data": str(games)},
            source="admissible",
            workers=0,
        ),
        out,
    ).counts
    assert counts["trajectories_failed"] == 1 and "trajectories_not_replayed" not in counts
    left = {pair.task_id for pair in read_pairs([out / "pairs.parquet"])}
    assert left == {step.task_id for step in few} - {broken}


def test_a_state_that_comes_twice_counts_once_and_one_that_differs_is_refused(
    games: Path, steps: list[Step], trajectories: Path, pairs: Path, tmp_path: Path
) -> None:
    twice = build_pairs(
        PairsSettings(
            trajectories=[trajectories] * 2,
            alternatives=[],
            env_settings={"data": str(games)},
            source="admissible",
            workers=0,
        ),
        tmp_path / "twice",
    ).counts
    once = read_manifest(pairs.parent)
    assert once is not None and twice == once.counts
    write_rows(tmp_path / "other.parquet", [replace(steps[0], action="look").to_row()], TRAJECTORY)
    with pytest.raises(DataError, match=r"other\.parquet: state .*trajectories\.parquet"):
        build_pairs(
            PairsSettings(
                trajectories=[trajectories, tmp_path / "other.parquet"],
                alternatives=[],
                env_settings={"data": str(games)},
                source="admissible",
                workers=0,
            ),
            tmp_path / "pairs",
        )


def test_an_expert_action_that_the_environment_refuses_is_not_the_better_one(steps: list[Step], tmp_path: Path) -> None:
    """It leaves no pair; the other states of its trajectory do. Files of old do not say what the environment took."""
    assert all(step.admissible for step in steps)
    refused = replace(steps[1], action="open door to hallway", admissible=None)
    in_other_words = replace(steps[2], action="go over to there")
    rows = [step.to_row() for step in (steps[0], refused, in_other_words, *steps[3:])]
    write_rows(tmp_path / "steps.parquet", rows, TRAJECTORY)
    manifest = build_pairs(
        PairsSettings(trajectories=[tmp_path / "steps.parquet"], source="admissible", margins=False, workers=0),
        tmp_path / "pairs",
    )
    assert manifest.counts["states_expert_inadmissible"] == 1
    pairs = read_pairs([tmp_path / "pairs" / "pairs.parquet"])
    assert {pair.state_id for pair in pairs} == {step.state_id for step in steps} - {refused.state_id}
    assert in_other_words.action in {pair.expert_action for pair in pairs}


def test_inputs_that_do_not_fit_are_refused(games: Path, trajectories: Path, replies: Path, tmp_path: Path) -> None:
    stray = Alternatives(state_id="elsewhere#0", replies=("x",), model="m", sampling="{}").to_row()
    write_rows(tmp_path / "stray.parquet", [stray], ALTERNATIVES)
    out = tmp_path / "pairs"
    with pytest.raises(ConfigError, match="source admissible"):
        build_pairs(PairsSettings(trajectories=[trajectories], workers=0), out)
    with pytest.raises(ConfigError, match="source is 'expert'"):
        build_pairs(PairsSettings(trajectories=[trajectories], source="expert", workers=0), out)
    with pytest.raises(DataError, match=r"stray\.parquet"):
        build_pairs(
            PairsSettings(trajectories=[trajectories], alternatives=[tmp_path / "stray.parquet"], workers=0), out
        )
    for files in ([tmp_path / "stray.parquet", replies], [replies, tmp_path / "stray.parquet"]):
        counts = build_pairs(
            PairsSettings(
                trajectories=[trajectories], alternatives=files, env_settings={"data": str(games)}, workers=0
            ),
            tmp_path / "both",
        ).counts
        assert counts["states_of_other_trajectories"] == 1, "in whichever order"
    with pytest.raises(DataError, match="occurs twice"):
        build_pairs(PairsSettings(trajectories=[trajectories], alternatives=[replies, replies], workers=0), out)
    with pytest.raises(DataError, match=r"alternatives/1.*trajectory/1"):
        build_pairs(PairsSettings(trajectories=[replies], source="admissible", workers=0), out)
    write_rows(tmp_path / "lonely.parquet", [_lonely(trajectories).to_row()], TRAJECTORY)
    with pytest.raises(DataError, match="from 1 states"):
        build_pairs(
            PairsSettings(trajectories=[tmp_path / "lonely.parquet"], source="admissible", margins=False, workers=0),
            out,
        )
    assert not out.exists()


def _lonely(trajectories: Path) -> Step:
    """A state whose only admissible action is the expert's."""
    step = read_steps([trajectories])[0]
    return replace(step, context=replace(step.context, admissible_actions=(step.action,)))


@pytest.mark.parametrize("inferable_only", [False, True])
def test_what_is_not_inferable_is_counted(inferable_only: bool, steps: list[Step], tmp_path: Path) -> None:
    rows = [replace(step, inferable=number % 4 > 0, tied_actions=()) for number, step in enumerate(steps)]
    write_rows(tmp_path / "steps.parquet", [step.to_row() for step in rows], TRAJECTORY)
    settings = {"source": "admissible", "margins": False, "inferable_only": inferable_only}
    counts = build_pairs(
        PairsSettings(trajectories=[tmp_path / "steps.parquet"], workers=0, **settings), tmp_path / "pairs"
    ).counts
    pairs = read_pairs([tmp_path / "pairs" / "pairs.parquet"])
    assert counts["states_not_inferable"] == sum(not step.inferable for step in rows) > 0
    assert counts["pairs_not_inferable"] == sum(not pair.inferable for pair in pairs)
    assert (counts["pairs_not_inferable"] == 0) is inferable_only
    assert counts["pairs_with_margin"] == 0


@pytest.mark.parametrize("inferable_only", [False, True])
def test_a_pair_is_not_inferable_where_the_expert_drew_between_its_actions(
    inferable_only: bool, steps: list[Step], tmp_path: Path
) -> None:
    write_rows(tmp_path / "steps.parquet", [step.to_row() for step in steps], TRAJECTORY)
    settings = PairsSettings(
        trajectories=[tmp_path / "steps.parquet"],
        source="admissible",
        margins=False,
        max_alternatives_per_state=100,
        inferable_only=inferable_only,
        workers=0,
    )
    counts = build_pairs(settings, tmp_path / "pairs").counts
    pairs = read_pairs([tmp_path / "pairs" / "pairs.parquet"])
    tied = {step.state_id: step.tied_actions for step in steps if step.tied_actions}
    at_ties = [pair for pair in pairs if pair.state_id in tied]
    assert {pair.state_id for pair in at_ties} == set(tied)
    assert all(pair.inferable is (pair.alternative_action not in tied[pair.state_id]) for pair in at_ties)
    assert all(pair.inferable for pair in at_ties) is inferable_only
    assert counts.get("alternatives_tied_with_the_expert", 0) == inferable_only * sum(
        len(actions) - 1 for actions in tied.values()
    )
