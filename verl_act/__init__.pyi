"""The public names, for type checkers; `__init__.py` reads from here which module has which."""

from verl_act.chain import load_recipe as load_recipe
from verl_act.chain import run_recipe as run_recipe
from verl_act.data_prep.alternatives.sample_alternatives import sample_alternatives as sample_alternatives
from verl_act.data_prep.expert.collect_expert import collect_expert as collect_expert
from verl_act.data_prep.expert.make_tasks import make_tasks as make_tasks
from verl_act.data_prep.imports.import_trajectories import import_trajectories as import_trajectories
from verl_act.data_prep.pairs.build_pairs import build_pairs as build_pairs
from verl_act.data_prep.pairs.check_pairs import check_pairs as check_pairs
from verl_act.data_prep.pairs.import_preferences import import_preferences as import_preferences
from verl_act.data_prep.sft.make_sft import make_sft as make_sft
from verl_act.data_prep.sft.reflect import reflect as reflect
from verl_act.envs.base import Environment as Environment
from verl_act.envs.base import EnvSpec as EnvSpec
from verl_act.envs.base import Observation as Observation
from verl_act.envs.base import StepResult as StepResult
from verl_act.envs.base import Task as Task
from verl_act.envs.make_games import make_games as make_games
from verl_act.envs.registry import register_env as register_env
from verl_act.evaluate.evaluation import evaluate_model as evaluate_model
from verl_act.manifest import Manifest as Manifest
from verl_act.prompts.registry import register_template as register_template
from verl_act.prompts.template import Template as Template
from verl_act.report import write_report as write_report
from verl_act.reward_fns.route import compute_score as compute_score
from verl_act.schema import Alternatives as Alternatives
from verl_act.schema import Context as Context
from verl_act.schema import Pair as Pair
from verl_act.schema import Step as Step
from verl_act.schema import Turn as Turn
from verl_act.settings.data import AlternativesSettings as AlternativesSettings
from verl_act.settings.data import AuditSettings as AuditSettings
from verl_act.settings.data import ExpertSettings as ExpertSettings
from verl_act.settings.data import GamesSettings as GamesSettings
from verl_act.settings.data import ImportSettings as ImportSettings
from verl_act.settings.data import PairsSettings as PairsSettings
from verl_act.settings.data import PreferencesSettings as PreferencesSettings
from verl_act.settings.data import ReflectSettings as ReflectSettings
from verl_act.settings.data import SftSettings as SftSettings
from verl_act.settings.data import TasksSettings as TasksSettings
from verl_act.settings.evaluation import EvaluationSettings as EvaluationSettings
from verl_act.settings.evaluation import ReportSettings as ReportSettings

__version__: str
