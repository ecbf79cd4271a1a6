"""The documentation agrees with the code: its commands parse, its keys, names, files, links and anchors exist.

`make docs` builds the site and finds links between its pages that lead nowhere; this file reads the same pages as they
lie in the repository, where README.md belongs to them, too.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

import distcxr
from distcxr.cli import app
from distcxr.recipe import load_recipe
from distcxr.recipe.keys import Recipe
from distcxr.recipe.load import with_overrides
from distcxr.recipe.shipped import recipe_names

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*/README.md"))
}
TODAY = {name: text for name, text in PAGES.items() if name != "CHANGELOG.md"}
"""Pages about what is there now: an old command or key in them is a mistake."""
FENCE = re.compile(r"^( *)```+(\w*)[^\n]*\n(.*?)^\1```+$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
KEY = re.compile(r"[a-z_]+(\.[a-z_0-9]+)*")
SECTIONS = {name for name, field in Recipe.model_fields.items() if hasattr(field.annotation, "model_fields")}
NO_KEYS = re.compile(
    r".*\.(safetensors|pth?|pt2|onnx|npz|json|py|yaml|csv|svg|md)"
)  # names of files that begin like a section
STAND_IN = "densenet121"
"""The recipe that `RECIPE` and a recipe of the reader's own stand for."""
UNFINISHED = "Missing|requires an argument|valid integer"
"""What the parser reports of a command in a sentence: `distcxr train`, `--batch N`."""
FORMS = ("key=value", "key=a,b")


def reference_pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference_pages", ROOT / "docs" / "reference_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFERENCE = reference_pages()
MADE = {
    "docs/keys.md": REFERENCE.keys(),
    "docs/verbs.md": REFERENCE.verbs(),
    "docs/run_folder.md": REFERENCE.run_folder(),
}
KEYS = {"train.stages", "data.members", "loss.parts", *re.findall(r"\{ #([\w.]+) \}", MADE["docs/keys.md"])}


def blocks(text: str, *languages: str) -> list[str]:
    return [found[3] for found in FENCE.finditer(text) if found[2] in languages]


def spans(text: str) -> list[str]:
    """Code inside of sentences and tables."""
    return [found.replace("\\|", "|") for found in INLINE.findall(FENCE.sub("", text))]


def commands(text: str) -> Iterator[tuple[list[str], bool]]:
    """The words of each command, and whether it is whole: one in a sentence may leave out its arguments."""
    for block in blocks(text, "sh", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            yield shlex.split(line, comments=True), True
    for span in spans(text):
        if span.startswith(("distcxr ", "accelerate launch ", "python launch.py ")):
            yield shlex.split(span), False


def words_after(words: list[str], *programs: str) -> list[str] | None:
    """The words of a program up to the end of its command; None where it is not called."""
    at = [number for number, word in enumerate(words) if Path(word).name in programs]
    rest = takewhile(lambda word: word not in ("&&", "||", "|", ";"), words[at[0] + 1 :]) if at else []
    return [word for word in rest if word != "..."] if at else None


def check_command(words: list[str], whole: bool) -> None:
    """Parse a command as the program does; raise what it raises."""
    if (launched := words_after(words, "launch.py", "distcxr.launch")) is not None:
        check_overrides([word for word in launched if not word.startswith("-")])
        return
    called = words_after(words, "distcxr")
    if not called or called[0].startswith("-"):
        return
    verb, *arguments = called
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    try:
        command.make_context(verb, list(arguments))
    except typer.TyperException as error:
        if whole or not re.search(UNFINISHED, error.format_message()):
            raise
    check_overrides([word for word in arguments if not word.startswith("-")])


@cache
def loaded(name: str) -> Recipe:
    return load_recipe(name, ["data.loader=torch"])  # of a sentence about `train.deterministic=true`


def check_overrides(words: list[str]) -> None:
    """Give the recipe among the words the overrides among them; where a sweep has several values, each of them."""
    stems = [word.removeprefix("recipes/").removesuffix(".yaml") for word in words]
    name = next((stem for stem in stems if stem in recipe_names()), STAND_IN)
    overrides = [word for word in words if KEY.fullmatch(word.partition("=")[0]) and word[-1] != "="]
    if any(word.startswith("train.stage") for word in overrides):
        name = "resnet50_staged"
    several = [
        [f"{key}={value}" for value in ([text] if text[0] in "[{" else text.split(","))]
        for key, _, text in (word.partition("=") for word in overrides if "=" in word and word not in FORMS)
    ]
    for number in range(max(map(len, several), default=0)):
        with_overrides(loaded(name), [values[min(number, len(values) - 1)] for values in several])


def failures(checked: Iterator[tuple[str, Any]]) -> list[str]:
    """What `checked` yields as (where, problem), for those with a problem."""
    return [f"{where}: {problem}" for where, problem in checked if problem]


def problem_of(check: Any, *arguments: Any) -> str | None:
    try:
        check(*arguments)
    except (typer.TyperException, ValueError, KeyError, SyntaxError) as error:
        return str(error) or repr(error)
    return None


def test_commands_parse_and_their_keys_are_keys() -> None:
    found = [(name, words, whole) for name, text in TODAY.items() for words, whole in commands(text)]
    assert sum(words_after(words, "distcxr") is not None for _, words, _ in found) > 60
    checked = ((f"{name}: {' '.join(words)}", problem_of(check_command, words, whole)) for name, words, whole in found)
    assert failures(checked) == []


def test_keys_in_sentences_are_keys() -> None:
    def problem(span: str) -> str | None:
        words = span.split()
        if all("=" in word and KEY.fullmatch(word.partition("=")[0]) for word in words):
            given = [
                word for word in words if word.partition(".")[0] in SECTIONS and not word.endswith(("=PATH", "=FILE"))
            ]
            return problem_of(check_overrides, given)
        key = re.sub(r"\.\d+\.", ".N.", span.partition(": ")[0])
        if not re.fullmatch(r"[a-z_]+(\.[a-z_]+|\.N)+", key) or key.partition(".")[0] not in SECTIONS:
            return None
        return None if key in KEYS or NO_KEYS.fullmatch(key) else "no such key"

    found = [(name, span) for name, text in TODAY.items() for span in spans(text)]
    assert failures((f"{name}: {span}", problem(span)) for name, span in found) == []
    assert problem("data.cache.paths") == "no such key" and "did you mean" in str(problem("optim.lrr=1"))


def test_recipes_shown_are_recipes(tmp_path: Path) -> None:
    recipes = 0
    for name, text in TODAY.items():
        for block in blocks(text, "yaml"):
            values = yaml.safe_load(block)
            if isinstance(values, dict) and "base" in values:
                file = tmp_path / "shown.yaml"
                file.write_text(block.replace(f"base: {values['base']}", f"base: {Path(values['base']).stem}"))
                assert problem_of(load_recipe, file) is None, f"{name}: {block}"
                recipes += 1
    assert recipes > 5


def test_names_in_python_are_names() -> None:
    public = ast.parse((ROOT / "distcxr" / "api.py").read_text()).body
    (predictor,) = (node for node in public if isinstance(node, ast.ClassDef) and node.name == "Predictor")
    methods = {node.name for node in predictor.body if isinstance(node, ast.FunctionDef)} | {"findings", "problems"}
    missing = []
    for name, text in TODAY.items():
        for block in blocks(text, "python"):
            nodes = list(ast.walk(ast.parse(block)))
            loaded = {
                node.targets[0].id
                for node in nodes
                if isinstance(node, ast.Assign) and "distcxr.load(" in ast.unparse(node.value)
                if isinstance(node.targets[0], ast.Name)
            }
            for node in nodes:
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    of_package = node.value.id == "distcxr" and not hasattr(distcxr, node.attr)
                    of_loaded = node.value.id in loaded and node.attr not in methods
                    missing += [f"{name}: {ast.unparse(node)}"] if of_package or of_loaded else []
        for module, word in re.findall(r"from (distcxr[\w.]*) import (\w+)", text):
            spec = importlib.util.find_spec(module)
            source = Path(spec.origin).read_text() if spec and spec.origin else ""
            missing += [] if re.search(rf"\b{word}\b", source) else [f"{name}: {module}.{word}"]
    assert missing == []


def headings(text: str) -> set[str]:
    """Anchors of a page, as code hosts and `make docs` make them."""
    lines = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    given = {found for line in lines for found in re.findall(r"\{ #(.+) \}", line)}
    return given | {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in lines}


def test_links_lead_somewhere() -> None:
    texts = {path: headings(text) for path, text in (PAGES | MADE).items()}

    def problem(page: str, link: str) -> str | None:
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent.joinpath(path).resolve().relative_to(ROOT).as_posix() if path else page
        if target not in texts:
            return None if (ROOT / target).exists() else "no such file"
        return None if not anchor or anchor in texts[target] else "no such heading"

    links = [(name, link) for name, text in (PAGES | MADE).items() for link in LINK.findall(FENCE.sub("", text))]
    assert len(links) > 150
    assert failures((f"{name}: {link}", problem(name, link)) for name, link in links if "://" not in link) == []


def test_keys_link_to_the_pages_they_name() -> None:
    assert "([own_parts.md](own_parts.md))" in MADE["docs/keys.md"]
    assert re.findall(r"\bdocs/\w+\.md", MADE["docs/keys.md"]) == []


def test_files_and_targets_named_are_there() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    missing = []
    for name, text in TODAY.items():
        code = "\n".join([*blocks(text, "sh"), *spans(text)])
        paths = re.findall(r"(?<![\w./-])((?:benchmarks|tests|slurm|requirements|container)/[\w./]+)", code)
        missing += [f"{name}: {path}" for path in paths if not (ROOT / path.rstrip(".")).exists()]
        missing += [
            f"{name}: make {word}" for word in re.findall(r"^make ([a-z]+)", code, re.MULTILINE) if word not in targets
        ]
    assert missing == []


def test_every_file_of_a_run_folder_is_described() -> None:
    assert [names for _, names, text in REFERENCE.files_described() if not text] == []
    assert "| `log.txt` |" in MADE["docs/run_folder.md"]


@pytest.mark.parametrize("name", ("train", "predict", "sweep"))
def test_every_option_of_a_verb_is_shown(name: str) -> None:
    section = MADE["docs/verbs.md"].partition(f"## distcxr {name} ")[2].partition("\n## ")[0]
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    assert all(option in section for one in command.params for option in one.opts if option.startswith("--"))
