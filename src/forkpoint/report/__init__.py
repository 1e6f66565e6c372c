"""One offline HTML page from run directories; it reads files and imports no model."""

from forkpoint.report.build import build_report

__all__ = ["build_report"]
