"""Reads a report as a browser would see it without drawing: elements, texts, tables."""

import base64
import csv
import io
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img"}


@dataclass
class Element:
    """One element with what is in it."""

    tag: str
    attributes: dict[str, str | None]
    children: list["Element | str"] = field(default_factory=list)

    def all(self, tag: str, css_class: str | None = None) -> list["Element"]:
        """Elements below with that tag and class, in order."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if child.tag == tag and (css_class is None or css_class in (child["class"] or "").split()):
                    found.append(child)
                found += child.all(tag, css_class)
        return found

    def everything(self) -> list["Element"]:
        """All elements below."""
        below = [c for c in self.children if isinstance(c, Element)]
        return below + [e for c in below for e in c.everything()]

    def __getitem__(self, attribute: str) -> str | None:
        return self.attributes.get(attribute)

    @property
    def text(self) -> str:
        """Its words, separated by single blanks."""
        return " ".join(" ".join(c if isinstance(c, str) else c.text for c in self.children).split())


class _Tree(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("root", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "wbr":  # says where a line may break; nothing to read
            return
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        before = self.open[-1].children
        if before and isinstance(before[-1], str):
            before[-1] += data
        else:
            before.append(data)


def parsed(text: str) -> Element:
    """The page's tree; fails where a tag closes another one's."""
    tree = _Tree()
    tree.feed(text)
    tree.close()
    assert tree.open == [tree.root], f"not closed: {[e.tag for e in tree.open]}"
    return tree.root


def ranking(page: Element) -> list[dict[str, str]]:
    """The ranked table by the names of its columns."""
    (table,) = page.all("table", "restack")
    names = [th.text for th in table.all("thead")[0].all("th")]
    rows = []
    for tr in table.all("tbody")[0].all("tr"):
        cells = [c.text for c in tr.children if isinstance(c, Element)]
        rows.append(dict(zip(names, cells, strict=True)))
    return rows


def downloaded(page: Element) -> tuple[str, list[dict[str, str]]]:
    """Name and rows of the CSV inside the page."""
    (link,) = [a for a in page.all("a") if a["download"]]
    head, _, content = str(link["href"]).partition(";base64,")
    assert head == "data:text/csv;charset=utf-8"
    return str(link["download"]), list(csv.DictReader(io.StringIO(base64.b64decode(content).decode())))
