"""What a day came to: numbers of the journal's minutes, and a page that shows them."""

from controller.report.page import is_report, page
from controller.report.summary import Recorded, summary

__all__ = ["Recorded", "is_report", "page", "summary"]
