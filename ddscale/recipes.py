"""Recipes: YAML files read, extended, overridden and checked against one typed model per stage.

A recipe may start from others (`extends: [base.yaml]`, paths relative to the recipe) and every command
takes `--set key.path=value`. Mappings merge key by key, anything else replaces. All problems of a recipe
are reported at once, each with its place, its value and the nearest known key where one was mistyped.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class Settings(BaseModel):
    """Base of every settings model: unknown keys refused, no silent type conversion, immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, protected_namespaces=()
    )


class RecipeError(ValueError):
    """A recipe that cannot be used; the message lists every problem found."""


S = TypeVar("S", bound=BaseModel)

# Which command takes recipes of a stage, for those who give one to another.
_USED_BY = {
    "ingest": "ddscale ingest",
    "pretrain": "deepspeed launchers/pretrain.py",
    "finetune": "deepspeed launchers/finetune.py",
    "probe": "ddscale probe",
    "grid": "ddscale grid",
    "export": "python export/to_onnx.py",
}


def load(path: str | os.PathLike[str], model: type[S], overrides: Iterable[str] = ()) -> S:
    """Read the recipe at `path`, apply `key.path=value` overrides and check it against `model`.

    Raises RecipeError naming every problem, FileNotFoundError when the file is not there.
    """
    return check(read(path, overrides), model, str(path))


def read(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The recipe as plain dicts and lists: `extends` resolved, overrides applied, nothing checked yet."""
    tree = _read_extended(Path(path), ())
    for override in overrides:
        _override(tree, override)
    return _at_home(tree)


def _at_home(node: Any) -> Any:
    """`~/` at the start of a value is the home folder, as in a shell, which expands none inside `--set`."""
    if isinstance(node, dict):
        return {key: _at_home(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_at_home(value) for value in node]
    return os.path.expanduser(node) if isinstance(node, str) and node.startswith("~/") else node


def stage_of(tree: dict[str, Any], path: str | os.PathLike[str]) -> str:
    """The recipe's `stage:`; raises RecipeError when it is not stated."""
    stage = tree.get("stage")
    if not isinstance(stage, str):
        raise RecipeError(
            f"{path}: no `stage:` key. Write the stage it configures, such as `stage: pretrain`."
        )
    return stage


def _read_extended(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"No recipe at {path}. Shipped recipes are in recipes/<stage>/.")
    resolved = path.resolve()
    if resolved in seen:
        chain = " -> ".join(str(p) for p in (*seen, resolved))
        raise RecipeError(f"Recipes extend each other in a circle: {chain}")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_RecipeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, found {type(tree).__name__}.")
    parents = tree.pop("extends", [])
    merged: dict[str, Any] = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        merged = _merge(merged, _read_extended(path.parent / parent, (*seen, resolved)))
    return _merge(merged, tree)


class _RecipeLoader(yaml.SafeLoader):
    """SafeLoader that reads `3e-4` as a number (YAML 1.1 reads it as text) and refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"key written twice: {', '.join(repeated)}", node.start_mark
            )
        return super().construct_mapping(node, deep)


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _override(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"--set {override!r}: write it as key.path=value, such as --set data.seed=7")
    try:
        value = yaml.load(text, Loader=_RecipeLoader)
    except yaml.YAMLError as error:
        quoted = f"{path}='{text}'" if "'" not in text else f'{path}="..."'
        raise RecipeError(
            f"--set {override!r}: the value is not valid YAML: {error}. A value with YAML's own characters "
            f'(* & ! % @ `) has to be quoted within the shell\'s quotes: --set "{quoted}".'
        ) from error
    *parents, last = path.strip().split(".")
    node: Any = tree
    walked = []
    for key in parents:
        walked.append(key)
        if isinstance(node, list):
            node = node[_list_position(override, node, key)]
        else:
            if not isinstance(node.get(key), dict | list):
                node[key] = {}
            node = node[key]
        if not isinstance(node, dict | list):
            raise RecipeError(f"--set {override!r}: {'.'.join(walked)} is a value, it has no keys.")
    if isinstance(node, list):
        node[_list_position(override, node, last)] = value
    else:
        node[last] = value


def _list_position(override: str, items: list[Any], key: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise RecipeError(
            f"--set {override!r}: {key!r} is not a position in a list of {len(items)} (counted from 0)."
        )
    return int(key)


def from_overrides(model: type[S], overrides: Iterable[str]) -> S:
    """Settings of a command that takes no recipe: defaults, changed by `key.path=value` overrides.

    Raises RecipeError naming what is wrong with them.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        _override(tree, override)
    return check(tree, model, "--set")


def check(tree: dict[str, Any], model: type[S], where: str) -> S:
    """Validate a recipe tree; raises RecipeError with every problem, one a line.

    A recipe of another stage is one problem: that all its keys are unknown here would only hide it.
    """
    wanted, given = _stage_wanted(model), tree.get("stage")
    if wanted and isinstance(given, str) and given != wanted and given in _USED_BY:
        raise RecipeError(
            f"{where} is a recipe of stage `{given}`, for `{_USED_BY[given]}`; here one of stage `{wanted}` is needed."
        )
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = [_explain(dict(problem), model, tree) for problem in error.errors()]
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise RecipeError(f"{where}: {count}\n" + "\n".join(f"  - {problem}" for problem in problems))


def _stage_wanted(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("stage")
    values = typing.get_args(field.annotation) if field else ()
    return values[0] if values else None


def _explain(problem: dict[str, Any], model: type[BaseModel], tree: Any) -> str:
    location = problem["loc"]
    place = ".".join(str(part) for part in _visible(location, tree)) or "recipe"
    kind = problem["type"]
    if kind == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.6)
        hint = f" Did you mean `{near[0]}`?" if near else f" Known keys: {', '.join(known)}." if known else ""
        return f"{place}: unknown key.{hint}"
    if kind == "missing":
        return f"{place}: required, and not given."
    if kind == "value_error":
        return f"{place}: {problem['ctx']['error']!s}"
    given = problem.get("input")
    shown = f" (found {given!r})" if not isinstance(given, dict | list) else ""
    return f"{place}: {problem['msg']}{shown}"


def _visible(location: tuple[Any, ...], tree: Any) -> list[Any]:
    """Drop the tags that pydantic inserts for union members: keep what can be followed in the recipe."""
    kept: list[Any] = []
    node = tree
    for position, part in enumerate(location):
        in_mapping = isinstance(node, dict) and part in node
        in_list = isinstance(node, list) and isinstance(part, int) and part < len(node)
        if in_mapping or in_list:
            node = node[part]
        elif position != len(location) - 1 or not isinstance(node, dict):
            continue
        kept.append(part)
    return kept


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Field names of the model at `location`, walking through lists, optionals and tagged unions."""
    candidates: list[Any] = [model]
    for part in location:
        following: list[Any] = []
        for candidate in candidates:
            if isinstance(part, str) and part in candidate.model_fields:
                following += _models_in(candidate.model_fields[part].annotation)
            elif isinstance(part, int) or part in _tags_of(candidate):
                following.append(candidate)
        candidates = following
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _tags_of(model: type[BaseModel]) -> set[Any]:
    """Literal values of a model's fields: how pydantic names the members of a tagged union."""
    tags: set[Any] = {model.__name__}
    for field in model.model_fields.values():
        if typing.get_origin(field.annotation) is typing.Literal:
            tags.update(typing.get_args(field.annotation))
    return tags


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, list, tuple, dict, typing.Annotated):
        return [found for part in typing.get_args(annotation) for found in _models_in(part)]
    return []


def save(recipe: BaseModel, path: str | os.PathLike[str]) -> None:
    """Write the resolved recipe, every default filled in, so that the run can be repeated from it alone."""
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)


def json_schema(model: type[BaseModel]) -> str:
    """JSON Schema of a stage's recipes, for editors that complete and check YAML as it is typed.

    Names for `extends` are added here, since it is resolved before a model ever sees the recipe; a recipe
    that extends another need not repeat the required keys, so none are required at the top.
    """
    schema = model.model_json_schema()
    schema["properties"]["extends"] = {
        "description": "Recipes this one starts from, relative to it; later ones win.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    schema.pop("required", None)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
