"""Run all of ACT from a recipe: a list of stages, each a command that can also be run by hand."""

from verl_act.chain.check import check_chain
from verl_act.chain.recipe import Recipe, load_recipe
from verl_act.chain.run import run_chain

__all__ = ["Recipe", "check_chain", "load_recipe", "run_chain"]
