"""Every prompt this package shows a model: `get_template(name)` and the means to register another."""

from verl_act.prompts.registry import get_template, register_template, template_names
from verl_act.prompts.template import Message, Template

__all__ = ["Message", "Template", "get_template", "register_template", "template_names"]
