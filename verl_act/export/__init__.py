"""This package as a folder of verl-recipe, verl's collection of community recipes."""

from verl_act.export.recipe import export_recipe

__all__ = ["export_recipe"]
