"""What a run did, as one self-contained page, and the same numbers as Markdown and JSON.

`read` finds what a folder holds, `numbers`, `curves` and `examples` turn it into figures and into single answers to
look at, `plots` and `page` draw them. No model is loaded.
"""

from verl_act.report.write import write_report

__all__ = ["write_report"]
