"""Reading the pages that the program writes."""

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "br"}


class Reader(HTMLParser):
    """The page's text, what it would load, and whether its tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.words, self.loads = [], [], []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in {"src", "href", "xlink:href", "srcset"}]
        self.loads += ["script"] if tag in {"script", "link", "iframe", "object"} else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in {"src", "href", "xlink:href", "srcset"}]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(page: Path) -> tuple[str, Reader]:
    """The page's text, and what else there is in it; its tags are balanced."""
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return " ".join(" ".join(reader.words).split()), reader
