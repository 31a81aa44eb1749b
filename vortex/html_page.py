"""The frame of an HTML file that needs no network and nothing beside it."""

from __future__ import annotations

from html import escape

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
{body}
<script>
{script}
</script>
</body>
</html>
"""


def html_page(title: str, style: str, body: str, script: str) -> str:
    """A whole page. ``title`` is text; ``style``, ``body`` and ``script`` are CSS, HTML and JavaScript as they are."""
    return _PAGE.format(title=escape(title), style=style, body=body, script=script)
