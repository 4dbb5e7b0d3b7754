"""All of ACT by one command: a recipe becomes a list of stages, each stage one command that can be run by hand."""

from verl_act.chain.check import check_chain
from verl_act.chain.recipe import Recipe, load_recipe
from verl_act.chain.run import run_chain

__all__ = ["Recipe", "check_chain", "load_recipe", "run_chain"]
