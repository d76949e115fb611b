"""The pages of the documentation, and the code in them."""

import pathlib
import re

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8")
    for path in [
        *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *sorted((REPOSITORY / "docs").rglob("*.md")),
    ]
}
_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]*?) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL
)


def code_of(page):
    """Returns the Python of a page that is run: its blocks, at the lines that they have there."""
    text = PAGES[page]
    lines = [""] * len(text.splitlines())
    for match in _BLOCK.finditer(text):
        if match["reason"] is None:
            start = text.count("\n", 0, match.start("code"))
            code = match["code"].splitlines()
            lines[start : start + len(code)] = code
    return "\n".join(lines) + "\n"


def blocks_not_run():
    """Returns `(page, reason)` of every Python block that is not run."""
    return [
        (page, match["reason"])
        for page, text in PAGES.items()
        for match in _BLOCK.finditer(text)
        if match["reason"] is not None
    ]


def pages_with_code():
    """Returns the names of the pages that have Python to run."""
    return [page for page in PAGES if code_of(page).strip()]
