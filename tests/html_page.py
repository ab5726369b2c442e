"""A page taken apart, for tests of what is on it."""

from html.parser import HTMLParser

_VOID = {"meta", "img", "input", "wbr"}


class HtmlPage(HTMLParser):
    """The elements of a page, its text and its attributes; fails where tags do not match."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.attributes, self._open = [], [], [], []
        self.feed(html)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        self.text.append(data)

    def words(self):
        """Return all text outside of tags, white space made one space."""
        return " ".join(" ".join(self.text).split())
