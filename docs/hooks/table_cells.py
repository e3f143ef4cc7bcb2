"""Escaping of texts for cells of Markdown tables."""


def inline(text: str) -> str:
    """Text on one line, as a table cell."""
    return cell(" ".join(text.split()))


def cell(text: str) -> str:
    """Escape the characters that would end a table cell or start a tag."""
    return text.replace("|", "\\|").replace("<", "&lt;")
