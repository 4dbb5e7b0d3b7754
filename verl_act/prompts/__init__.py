"""All prompts of this package: `get_template(name)`, and `register_template` for further ones."""

from verl_act.prompts.registry import get_template, register_template, template_names
from verl_act.prompts.template import Message, Template

__all__ = ["Message", "Template", "get_template", "register_template", "template_names"]
