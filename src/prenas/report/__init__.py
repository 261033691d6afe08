"""The results of a run for readers: a table, pictures, and one Markdown page with all of it."""

from prenas.report.curves import draw_accuracy, wilson_interval
from prenas.report.figure import render
from prenas.report.page import write_report
from prenas.report.table import flat_rows, write_csv

__all__ = ["draw_accuracy", "flat_rows", "render", "wilson_interval", "write_csv", "write_report"]
