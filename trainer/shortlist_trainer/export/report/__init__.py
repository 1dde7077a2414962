"""report.html: what a published version was made of and how good it is, drawn on one page that opens offline."""

from shortlist_trainer.export.report.content import ClustersShown, ClusterView, ReportContent, item_titles
from shortlist_trainer.export.report.page import write_report

__all__ = ["ClusterView", "ClustersShown", "ReportContent", "item_titles", "write_report"]
