"""What `make docs` adds to the pages in this folder: reference pages, and the repository's files that pages link to.

A link to a file outside `docs/`, right on a code host, is made one to a page of the site that shows the file. So the
site needs no address of a repository, and no request leaves it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File
from pymdownx.slugs import slugify
from reference_pages import keys, run_folder, verbs

ROOT = Path(__file__).parents[1]
REFERENCE = {"keys.md": keys, "verbs.md": verbs, "run_folder.md": run_folder}
PAGES = {
    "README.md": "index.md",
    "BENCHMARKS.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Files at the top that are pages of the site. README.md itself is not: `index.md` is for those who read the site."""
TASKS = "How to"
"""Section of mkdocs.yml that takes in the pages which no section names."""
SHOWN = "files"
"""Folder of the site for other files of the repository."""

_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_CELL, _CODE = re.compile(r"^ *\|.*$", re.MULTILINE), re.compile(r"`[^`\n]+`")  # code hosts want `\|` in a table's code
_log = get_plugin_logger("distcxr")


def on_config(config: Any) -> Any:
    """Anchors as code hosts make them, so that one link works on both; and pages that mkdocs.yml does not name."""
    config["mdx_configs"].setdefault("toc", {})["slugify"] = slugify(case="lower")
    (tasks,) = (section[TASKS] for section in config["nav"] if TASKS in section)
    named = set(re.findall(r"[\w.]+\.md", str(config["nav"])))
    tasks += sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name not in named)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    made = {name: page() for name, page in REFERENCE.items()}
    made |= {page: (ROOT / path).read_text() for path, page in PAGES.items() if path != "README.md"}
    own = {file.src_uri: file.content_string for file in files.documentation_pages()}
    waiting = {uri: text for uri, text in (own | made).items()}
    while waiting:
        uri, text = waiting.popitem()
        for path in _linked(origin(uri), text):
            page = page_of(path)
            if page.startswith(f"{SHOWN}/") and page not in made and (ROOT / path).is_file():
                waiting[page] = made[page] = _shown(path)
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links between files of the repository into links between pages."""
    uri = page.file.src_uri

    def replaced(match: re.Match[str]) -> str:
        if is_address(match[2]):
            return match[0]
        target = page_of(_resolved(origin(uri), match[2]))
        if files.get_file_from_path(target) is None:
            _log.warning(f"{origin(uri)} links to {match[2]}, which is no file")
        return f"{match[1]}{posixpath.relpath(target, posixpath.dirname(uri) or '.')}{match[3]}"

    return _CELL.sub(
        lambda row: _CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0]), _LINK.sub(replaced, markdown)
    )


def origin(uri: str) -> str:
    """Path in the repository of a page's text; what is made is as if it lay in `docs/`."""
    if uri.startswith(f"{SHOWN}/"):
        return uri.removeprefix(f"{SHOWN}/").removesuffix(".md") + (".md" if uri.endswith(".md.md") else "")
    return next((path for path, page in PAGES.items() if page == uri and path != "README.md"), f"docs/{uri}")


def page_of(path: str) -> str:
    """The page that shows a file of the repository, or the file itself where it is in `docs/`."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return PAGES.get(path) or f"{SHOWN}/{path}.md"


def is_address(target: str) -> bool:
    return ":" in target


def _linked(path: str, text: str) -> Iterator[str]:
    """Paths of the files that a text links to."""
    return (_resolved(path, match[2]) for match in _LINK.finditer(text) if not is_address(match[2]))


def _resolved(path: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def _shown(path: str) -> str:
    """A page with a file: its text where it is Markdown, else its code."""
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    language = {".yaml": "yaml", ".py": "python", ".json": "json"}.get(Path(path).suffix, "text")
    return f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n````{language}\n{text}\n````\n"
