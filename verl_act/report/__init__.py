"""The report of a run: one self-contained HTML page, and the same metrics as Markdown and JSON.

`read` reads a run folder; `summary`, `tables`, `curves`, `calibration` and `examples` compute the content and `verdict`
judges it; `plots`, `page` and `write` render it. No model is loaded.
"""

from verl_act.report.verdict import summary_text
from verl_act.report.write import write_report

__all__ = ["summary_text", "write_report"]
