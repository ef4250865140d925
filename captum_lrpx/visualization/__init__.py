"""Text, colors and tables for a terminal and for HTML; the interactive page."""
