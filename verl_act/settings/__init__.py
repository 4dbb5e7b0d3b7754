"""The settings of every stage: the only place where an option, its default, range and help text are written.

Recipes, manifests, the command line and the Python interface use these classes.
"""
