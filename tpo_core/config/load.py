"""Validate a recipe once, after the overrides, and say what is wrong where."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NotRequired

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict

from tpo_core.config.document import Document, Location, from_mapping, read_yaml
from tpo_core.config.overrides import apply_overrides
from tpo_core.config.recipe import GROUPS, Recipe, StageConfig
from tpo_core.contract import HeadConfig
from tpo_core.errors import ConfigError, HeadNotFound, did_you_mean

_EXPECTED = {
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a mapping",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "a mapping",
    "none_required": "null",
    "string_type": "text",
    "tuple_type": "a list",
    "typed_dict_type": "a mapping",
}
_BOUNDS = {
    "greater_than": ("gt", "a number above"),
    "greater_than_equal": ("ge", "a number of at least"),
    "less_than": ("lt", "a number below"),
    "less_than_equal": ("le", "a number of at most"),
    "string_pattern_mismatch": ("pattern", "a name that matches"),
}


def load_recipe(
    recipe: Document | Mapping[str, Any] | str | Path, *, overrides: Sequence[str] = (), head_configs: Mapping[str, type[HeadConfig]]
) -> Recipe:
    """Return the validated recipe; `recipe.heads` holds an instance of each named head's own config class.

    Args:
        recipe: a YAML file, a mapping, or a document from `read_yaml` (it is not changed).
        overrides: ``path=value``, merged in order before the recipe is validated once.
        head_configs: config classes of the heads that may be named.

    Raises:
        ConfigError: every wrong place on its own line: file, line, path, what was found, what was expected.
        HeadNotFound: the recipe names a head that is not in `head_configs`.
    """
    document = open_recipe(recipe, overrides=overrides)
    heads = document.data.get("heads")
    if isinstance(heads, dict):
        for name in heads:
            if name not in head_configs:
                where = document.place(("heads", name))
                raise HeadNotFound(f"{where}: no installed package announces the head {name!r}{_near(name, head_configs)}")
            if heads[name] is None:
                heads[name] = {}
    try:
        text = json.dumps(document.data, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{document.source}: holds a value that is not plain ({error}); use text, numbers, lists and mappings") from error
    named = [name for name in heads if name in head_configs] if isinstance(heads, dict) else []
    model = compose({name: head_configs[name] for name in [*named, *sorted(set(head_configs) - set(named))]})
    try:
        result = model.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(details, model, document) for details in error.errors(include_url=False))) from error
    _check_names(result, document)
    return result


def open_recipe(recipe: Document | Mapping[str, Any] | str | Path, *, overrides: Sequence[str] = ()) -> Document:
    """Return the document with the overrides merged in, not yet validated; the argument is left as it was."""
    if isinstance(recipe, Document):
        document = Document(from_mapping(recipe.data).data, recipe.source, dict(recipe.lines), dict(recipe.overrides))
    elif isinstance(recipe, Mapping):
        document = from_mapping(recipe)
    else:
        document = read_yaml(recipe)
    apply_overrides(document, overrides)
    return document


def head_names(document: Document) -> list[str]:
    """Return the heads that a document names, in its order, before their packages are known.

    Raises:
        ConfigError: ``heads`` is no mapping.
    """
    heads = document.data.get("heads")
    if not isinstance(heads, dict):
        raise ConfigError(f"{document.place(('heads',))}: found {heads!r}, expected a mapping such as 'region: {{}}'")
    return list(heads)


def compose(head_configs: Mapping[str, type[HeadConfig]]) -> type[Recipe]:
    """Return the recipe's class with ``heads`` typed by the installed heads, so that paths, errors and JSON schema reach into them."""
    return _compose(tuple(head_configs.items()))


@lru_cache(maxsize=16)
def _compose(head_configs: tuple[tuple[str, type[HeadConfig]], ...]) -> type[Recipe]:
    # Built at run time, which the checker cannot follow. One class per set of heads, so that equal recipes compare equal.
    heads = TypedDict("Heads", {name: NotRequired[config] for name, config in head_configs})  # type: ignore[misc]
    heads.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[attr-defined]
    description = Recipe.model_fields["heads"].description
    return create_model("Recipe", __base__=Recipe, heads=(heads, Field(description=description)))


def _check_names(recipe: Recipe, document: Document) -> None:
    """Check what one part of a recipe says of another; here, because here the lines are known."""
    problems: list[str] = []
    sources = [source.name for source in recipe.data.train]
    stages = [stage.name for stage in recipe.stages]
    for index, stage in enumerate(recipe.stages):
        at: Location = ("stages", index)
        if stage.name in stages[:index]:
            problems.append(f"{document.place((*at, 'name'))}: {stage.name!r} is the name of two stages; names must differ")
        for position, head in enumerate(stage.heads or ()):
            if head not in recipe.heads:
                where = document.place((*at, "heads", position))
                problems.append(f"{where}: the recipe's heads have no {head!r}{_near(head, recipe.heads)}")
        for head in stage.weights:
            if head not in recipe.heads:
                where = document.place((*at, "weights", head))
                problems.append(f"{where}: the recipe's heads have no {head!r}{_near(head, recipe.heads)}")
        for source in stage.sources or ():
            if source not in sources:
                problems.append(f"{document.place((*at, 'sources', source))}: data.train has no source {source!r}{_near(source, sources)}")
        problems += [f"{document.place((*at, 'train', group))}: {text}" for group, text in _group_problems(stage, recipe)]
    for name, config in recipe.heads.items():
        if config.init_from is not None and config.init_from not in recipe.heads:
            where = document.place(("heads", name, "init_from"))
            problems.append(f"{where}: the recipe's heads have no {config.init_from!r}{_near(config.init_from, recipe.heads)}")
    if problems:
        raise ConfigError("\n".join(problems))


def _group_problems(stage: StageConfig, recipe: Recipe) -> Iterable[tuple[str, str]]:
    taking_part = list(recipe.heads) if stage.heads is None else list(stage.heads)
    for group in stage.train:
        root, _, head = group.partition(".")
        if root not in GROUPS or (head and root not in ("heads", "tokens")):
            yield group, f"no such group of parameters{_near(group, [*GROUPS, *(f'heads.{name}' for name in recipe.heads)])}"
        elif head and head not in taking_part:
            yield group, f"the head {head!r} takes no part in this stage{_near(head, taking_part)}"
        elif root == "lora" and recipe.lora is None and stage.train[group] is not None:
            yield group, "the recipe says lora: null, so there is no adapter to train; remove the group or give lora.r"


def _near(name: str, known: Iterable[str]) -> str:
    names = [str(item) for item in known]
    return "." + (did_you_mean(name, names) or (f" Known: {', '.join(names)}" if names else " None is known"))


def _explain(details: ErrorDetails, model: type[BaseModel], document: Document) -> str:
    location = _real_location(details["loc"], document.data, keep_last=details["type"] in ("missing", "extra_forbidden"))
    kind, context = details["type"], details.get("ctx", {})
    where = document.place(location)
    if kind == "extra_forbidden":
        return f"{where}: unknown key{_near(str(location[-1]), _fields(model, details['loc'][:-1]))}"
    if kind == "missing":
        return f"{where}: is missing; it says: {_description(model, details['loc'])}"
    if kind == "value_error":
        return f"{where}: {context.get('error', details['msg'])}"
    found = _shown(details["input"])
    if kind == "literal_error":
        choices = str(context.get("expected", ""))
        near = did_you_mean(str(details["input"]), re.findall(r"'([^']*)'", choices))
        return f"{where}: found {found}, expected {choices}{'.' if near else ''}{near}"
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"{where}: found {found}, expected {words} {context.get(key)}"
    return f"{where}: found {found}, expected {_EXPECTED.get(kind, details['msg'])}"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:80]}..."


def _real_location(location: tuple[int | str, ...], data: Any, *, keep_last: bool) -> Location:
    """Drop the steps that pydantic adds for unions and key checks and that stand nowhere in the recipe."""
    kept: list[str | int] = []
    for index, part in enumerate(location):
        inside = (isinstance(data, dict) and part in data) or (isinstance(data, list) and isinstance(part, int) and part < len(data))
        if inside:
            data = data[part]
        elif not (keep_last and index == len(location) - 1):
            continue
        kept.append(part)
    return tuple(kept)


def _node(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema or "anyOf" in schema:
        if "$ref" in schema:
            schema = definitions[schema["$ref"].rsplit("/", 1)[-1]]
        else:
            schema = next(choice for choice in schema["anyOf"] if choice.get("type") != "null")
    return schema


def _walk(model: type[BaseModel], location: tuple[int | str, ...]) -> dict[str, Any]:
    """Return the JSON schema at a location; {} where it has none."""
    root = model.model_json_schema(by_alias=True)
    definitions = root.get("$defs", {})
    node = root
    for part in location:
        node = _node(node, definitions)
        if isinstance(part, int):
            node = node.get("items") or next(iter(node.get("prefixItems", [])), {})
        else:
            node = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
        if not isinstance(node, dict) or not node:
            return {}
    return node


def _fields(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    root = model.model_json_schema(by_alias=True)
    return list(_node(_walk(model, location) or root, root.get("$defs", {})).get("properties", {}))


def _description(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    return str(_walk(model, location).get("description", "a value is needed"))


def recipe_schema(head_configs: Mapping[str, type[HeadConfig]]) -> dict[str, Any]:
    """Return the JSON schema of a recipe with these heads, for editors."""
    return TypeAdapter(compose(head_configs)).json_schema(by_alias=True)
