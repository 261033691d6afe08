"""One HTML file from which a reader chooses a subnet: plots, limits, and the command to type."""

from prenas.report.html.assembly import document, write_page
from prenas.report.html.content import content_of

__all__ = ["content_of", "document", "write_page"]
