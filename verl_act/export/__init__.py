"""This package as a folder of verl-recipe, verl's collection of community recipes."""
