"""The report of a run: one self-contained HTML page, and the same metrics as Markdown and JSON.

`read` and `stages` read a run folder; `tables`, `curves`, `calibration`, `methods` and `examples` compute the
content; `plots`, `page` and `write` render it. No model is loaded.
"""

from verl_act.report.write import write_report

__all__ = ["write_report"]
