"""HTML and SVG whose text cannot become markup: whatever was not made by ``tag`` is escaped."""

from html import escape


class Markup(str):
    """Text that is HTML already, for a browser to read as such."""

    __slots__ = ()


def tag(name: str, *children: str | Markup, **attributes: object) -> Markup:
    """An element.

    Args:
        name: of the element.
        children: in order; those that are not ``Markup`` are escaped.
        attributes: values are escaped; None leaves one out; a trailing underscore of a name is dropped and any other
            becomes a hyphen, so that ``class_`` and ``aria_label`` can be written.
    """
    opening = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{opening}>{join(children)}</{name}>")


def join(parts: "list[Markup] | tuple[str | Markup, ...]") -> Markup:
    """Parts one after the other; those that are not ``Markup`` are escaped."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))
