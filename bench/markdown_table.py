"""Tables in Markdown."""


def table(header, rows):
    """The lines of a table; all cells are texts."""
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
