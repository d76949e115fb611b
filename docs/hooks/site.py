"""Prepares the documentation site: the sources of its API reference, and the pages of the root."""

import ast
import pathlib
import posixpath
import re
import shutil
import textwrap

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "build" / "docs" / "keras_dsnet"
# An argument that all constructors share, whose text their docstrings get when they are imported.
SHARED_ARGUMENT = re.compile(r"^( +(\w+): )\{\2\}$", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>\.\./[^)#]+)\)")
# Pages that stand at the root of the repository, where GitHub looks for them.
ROOT_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
# Headings of docstrings as Keras writes them, and as the parser of Google's style knows them.
HEADINGS = {
    "Call arguments": "Other Parameters: Call arguments",
    "Input shape": "Other Parameters: Input shape",
    "Output shape": "Other Parameters: Output shape",
}


def on_startup(command, dirty):
    """Copies the package together with `applications/`, which lies beside it in the checkout.

    This must come before mkdocstrings reads its configuration, which drops missing folders.
    """
    ignored = shutil.ignore_patterns("__pycache__", "*.h5")
    shutil.rmtree(PACKAGE, ignore_errors=True)
    shutil.copytree(ROOT / "keras_dsnet", PACKAGE, ignore=ignored)
    shutil.copytree(ROOT / "applications", PACKAGE / "applications", ignore=ignored)
    shared = shared_arguments(PACKAGE / "applications" / "build_network.py")
    for path in PACKAGE.rglob("*.py"):
        source = google_style(path.read_text(encoding="utf-8"))
        if path.parent.name == "applications":
            source = SHARED_ARGUMENT.sub(lambda match: match[1] + shared[match[2]], source)
        path.write_text(source, encoding="utf-8")


def on_files(files, config):
    """Adds the pages that stand at the root of the repository."""
    for name, page in ROOT_PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        text = text.replace("](docs/", "](")
        for other, copy in ROOT_PAGES.items():
            text = text.replace(f"]({other}", f"]({copy}")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Makes links that lead out of `docs/` lead to a page of the site, or be plain text."""
    folder = pathlib.PurePosixPath("docs", page.file.src_uri).parent

    def replace(match):
        target = posixpath.normpath(str(folder / match["target"]))
        if target in ROOT_PAGES:
            return f"[{match['text']}]({'../' * (len(folder.parts) - 1)}{ROOT_PAGES[target]})"
        return match[0] if target.startswith("docs/") else match["text"]

    return LINK.sub(replace, markdown)


def google_style(source):
    """Returns Python source with the docstring headings that the parser knows."""
    for heading, parsed in HEADINGS.items():
        source = re.sub(rf"^( +){heading}:$", rf"\1{parsed}:", source, flags=re.MULTILINE)
    # Keras does not indent an example, which stands last in a docstring; Google's style does.
    example = re.compile(r'^( +)Examples?:\n\n?(.*?)(?=^\1""")', re.MULTILINE | re.DOTALL)
    return example.sub(
        lambda match: f"{match[1]}Examples:\n{textwrap.indent(match[2], '    ')}", source
    )


def shared_arguments(path):
    """Returns the texts of the arguments that constructors share: a dict literal of a file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_SHARED_ARGUMENTS":
            return ast.literal_eval(node.value)
    return {}
