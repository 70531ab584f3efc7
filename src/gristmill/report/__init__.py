"""Building blocks of HTML pages: tables, small SVG charts, diagrams. Knows no other room."""

from gristmill.report.blocks import code, columns, figures, folded, meters, note, says, table
from gristmill.report.charts import Bar, Series, bar_chart, line_chart
from gristmill.report.diagram import Box, diagram
from gristmill.report.html import Html, join, tag, text
from gristmill.report.page import Section, page

__all__ = [
    "Bar",
    "Box",
    "Html",
    "Section",
    "Series",
    "bar_chart",
    "code",
    "columns",
    "diagram",
    "figures",
    "folded",
    "join",
    "line_chart",
    "meters",
    "note",
    "page",
    "says",
    "table",
    "tag",
    "text",
]
