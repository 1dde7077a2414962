"""report.html: what a published version was made of and how good it is, drawn on one page that opens offline."""

from shortlist_trainer.export.report.content import Clustering, ClusterView, ReportContent
from shortlist_trainer.export.report.page import write_report

__all__ = ["ClusterView", "Clustering", "ReportContent", "write_report"]
