"""The report of a version that was published again with other indexes: the same page but for what they change."""

import re

from shortlist_trainer.export.index import BuiltIndex
from shortlist_trainer.export.report.indexes import NAME, TILE, index_section, recall_tile


def with_other_indexes(html: str, old: int, new: int, items: BuiltIndex, neighbours: BuiltIndex) -> str:
    """A report with other indexes.

    Nothing on a page closes a section or a tile but its own end, as all text is escaped, so that they can be replaced.

    Args:
        html: the report of version ``old``.
        old: the version that the rest is from.
        new: the version that it is now.
        items: user -> items.
        neighbours: item -> items.
    """
    section = index_section(items, neighbours, f"Tuned again from version {old}, of which everything else is.")
    if f'<section id="{NAME}">' in html:
        html = re.sub(rf'<section id="{NAME}">.*?</section>', lambda _: section, html, count=1, flags=re.DOTALL)
    else:  # written before there was one
        html = html.replace('<section id="making">', f'{section}<section id="making">', 1)
    html = re.sub(rf'<div id="{TILE}">.*?</div>', lambda _: recall_tile(items), html, count=1, flags=re.DOTALL)
    for end in ("</title>", "</span></h1>"):
        html = html.replace(f"version {old}{end}", f"version {new}{end}", 1)
    return html
