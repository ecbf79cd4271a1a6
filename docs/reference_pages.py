"""The reference pages, as Markdown from what the code has: keys of a recipe, verbs, files of a run folder."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import typer

from distcxr.cli import app
from distcxr.recipe.keys import IDENTITY_FREE, json_schema
from distcxr.runfolder import filenames

_KEYS = """# Keys of a recipe

Every key, its values, its default and what it means: the text is that of the schema, which editors show, too
([recipe.schema.json](../recipes/recipe.schema.json), printed by `distcxr schema`). How a recipe is written, and which
there are: [Recipes](recipes.md). Any key can be given on the command line: `optim.lr=3e-4`, `train.stages.0.lr=1e-4`.

Keys marked *may change on resume* decide nothing of what is learnt from which image: a run resumes with another value.
With another value of any other key it does not.
"""
_PAGE = re.compile(r"\bdocs/(\w+\.md)\b")
_VERBS = """# Verbs

All commands of `distcxr`, as `--help` has them. What to use when: [All tasks, one line each](howto.md). Exit
codes: [Several machines](cluster.md#several-machines-without-slurm).
`distcxr --install-completion` makes your shell complete verbs, options and recipes.
"""
OR = "\\|"  # in a cell of a table
_TYPE = re.compile(r" <[\w\[\]]+>$")  # of Python, behind a name that means more to users
_FILES = """# The run folder

`runs/<recipe>/<time>/`, or `output=FOLDER`. Names in `<...>` vary. `distcxr check FOLDER` reads all of it once and
lists what is damaged.

## Checkpoints

`checkpoints/best` is the best validation's, `last-<step>` the newest ones ([checkpoint.keep](keys.md#checkpoint.keep)),
`stage-<n>` what a stage left. They are written whole or not at all, beside the training:
[Checkpoints](cluster.md#checkpoints).

| file | holds |
|---|---|
| `model.safetensors` | weights and buffers, loadable anywhere |
| `trained.safetensors` | with `train.ema` alone: what training resumes with |
| `training.pt` | optimiser and GradScaler |
| `checkpoint.json` | recipe, state, sizes and checksums of the others; written last |
"""
_OF_A_RUN = "Files"
_GROUPS = {
    "Marks, and what ranks leave for each other": (
        "LOCK", "STOP", "FAILED", "STALLED", "IMAGES", "RANKS", "stacks", "flight_record",
    ),
    "Sweeps and arrays": (
        "LISTING", "SWEEP", "SWEEP_MARKDOWN", "LAUNCH_LOG", "FINISHED", "TASKS", "SLURM_LOG", "slurm_folder",
    ),
}  # fmt: skip
"""What `filenames.py` names that is no plain file of a run, by the first name in the code."""


def keys() -> str:
    """Every key of a recipe under a heading of its own, so that a search finds it and a link can name it."""
    schema = json_schema()
    shown: dict[str, str] = {}
    text = "".join(_section(schema["properties"], "", schema["$defs"], shown))
    return _KEYS + _PAGE.sub(r"[\1](\1)", text)


def verbs() -> str:
    """Every verb: its usage, what it does, its arguments and options."""
    group = typer.main.get_command(app)
    return _VERBS + "".join(_verb(name, command) for name, command in group.commands.items())  # type: ignore[attr-defined]


def run_folder() -> str:
    """Every name of `filenames.py` with the text that it has there."""
    tables = {title: f"\n## {title}\n\n| file | holds |\n|---|---|\n" for title in (_OF_A_RUN, *_GROUPS)}
    for constant, names, text in files_described():
        title = next((title for title, constants in _GROUPS.items() if constant in constants), _OF_A_RUN)
        tables[title] += f"| {', '.join(f'`{name}`' for name in names)} | {text} |\n"
    return _FILES + "".join(tables.values())


def files_described() -> Iterator[tuple[str, list[str], str]]:
    """What `filenames.py` defines, in its order: the first name in the code, names of files, and their text."""
    body = ast.parse(inspect.getsource(filenames)).body
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.Assign) and not isinstance(node.value, ast.Call):
            written = ast.literal_eval(node.value)
            text = ast.literal_eval(after.value) if isinstance(after, ast.Expr) else ""
            constant = ast.unparse(node.targets[0]).strip("()").partition(",")[0]
            yield constant, list(written) if isinstance(written, tuple) else [written], _cell(text)
        elif isinstance(node, ast.FunctionDef):
            blanks = [f"<{argument.arg}>" for argument in node.args.args]
            needed = blanks[: len(blanks) - len(node.args.defaults)]
            text = (ast.get_docstring(node) or "").partition("\n\n")[0]
            yield node.name, [getattr(filenames, node.name)(*needed)], _cell(text)


def _section(properties: dict[str, Any], path: str, defs: dict[str, Any], shown: dict[str, str]) -> Iterator[str]:
    """Headings of the keys of a section, those that hold no section first; `shown` is where each has been."""
    inner = {name: found for name, one in properties.items() if (found := _section_of(one))}
    for name, one in properties.items():
        if name not in inner:
            at, text = f"{path}{name}", _line(one["description"])
            yield f"\n#### {at} {{ #{at} }}\n\n{_facts(at, one)}\n\n{text}\n"
    for name, (title, suffix) in inner.items():
        at, one = f"{path}{name}{suffix}", properties[name]
        facts = "" if "$ref" in one else f"\n{_facts(at, one)}\n"
        level = "##" if "." not in at else "###"
        yield f"\n{level} {at} {{ #{at} }}\n{facts}\n{_line(one.get('description') or defs[title]['description'])}\n"
        if title in shown:
            yield f"\nThe keys are those of [{shown[title]}](#{shown[title]}).\n"
        else:
            shown[title] = at
            yield from _section(defs[title]["properties"], f"{at}.", defs, shown)


def _facts(path: str, one: dict[str, Any]) -> str:
    """What the key may be, its default, and whether a resumed run may have another."""
    default = f"; default `{_value(one['default'])}`" if "default" in one else ""
    free = any(path == key or path.startswith(f"{key}.") for key in IDENTITY_FREE)
    return f"{_values(one)}{default}{'; *may change on resume*' if free else ''}"


def _section_of(one: dict[str, Any]) -> tuple[str, str] | None:
    """Name of the section that a key holds, and what a path through it has: `.N` for a list of them."""
    for part in (one, *one.get("anyOf", ())):
        if "$ref" in part:
            return part["$ref"].rpartition("/")[2], ""
        if "$ref" in part.get("items", {}):
            return part["items"]["$ref"].rpartition("/")[2], ".N"
    return None


def _values(one: dict[str, Any]) -> str:
    """What a key may be, in words."""
    if "anyOf" in one:
        return " or ".join(dict.fromkeys(_values(part) for part in one["anyOf"]))
    if "$ref" in one:
        return "keys of its own"
    if "enum" in one:
        return ", ".join(f"`{_value(word)}`" for word in one["enum"])
    if "const" in one:
        return f"`{_value(one['const'])}`"
    kind = one.get("type", "anything")
    if kind == "array":
        parts = one.get("prefixItems") or [one.get("items", {})]
        return f"list of {' and '.join(_values(part) for part in parts)}"
    if kind == "object":
        return f"a value for each name: {_values(one.get('additionalProperties') or {})}"
    if one.get("pattern") and "examples" in one:
        named = "duration" if len(one["examples"]) > 1 else "for example"
        return f"{named}: {', '.join(f'`{example}`' for example in one['examples'])}"
    words = {
        "integer": "whole number",
        "number": "number",
        "boolean": "`true` or `false`",
        "null": "`null`",
        "string": "text",
    }
    named = "path" if one.get("format") == "path" else words.get(kind, kind)
    bounds = [
        f"{sign} {one[key]:,}" if isinstance(one[key], int) else f"{sign} {one[key]:g}"
        for key, sign in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "to"),
            ("exclusiveMaximum", "below"),
        )
        if key in one
    ]
    return " ".join([named, *bounds])


def _value(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", OR)


def _verb(name: str, command: Any) -> str:
    context = command.make_context(f"distcxr {name}", [], resilient_parsing=True)
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    texts = "\n\n".join(_line(part) for part in (command.help or "").split("\n\n"))
    records = [parameter.get_help_record(context) for parameter in command.params]
    shown = [
        (_cell(_TYPE.sub("", name)), _cell(text).replace("*", "\\*")) for name, text in filter(None, records)
    ]  # `*` is a pattern's, no emphasis
    rows = "".join(f"| `{name}` | {text} |\n" for name, text in shown)
    return f"\n## distcxr {name} {{ #{name} }}\n\n```text\n{usage}\n```\n\n{texts}\n\n| | |\n|---|---|\n{rows}"
