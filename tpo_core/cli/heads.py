"""`tpo heads`: what is installed, one head in full, and the conformance kit on a head."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from tpo_core.cli.output import echo, print_table
from tpo_core.contract import HeadConfig, HeadSpec
from tpo_core.plugins import PluginEntry, Plugins, load_plugins


class HeadsGroup(click.Group):
    """``tpo heads NAME`` is ``tpo heads show NAME``."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["show", *args])


@click.group(
    cls=HeadsGroup,
    invoke_without_command=True,
    subcommand_metavar="[NAME | check NAME]",
    epilog="TPO_PLUGINS=a,b loads only these plugins or packages beside the built-in (empty: none); TPO_STRICT_PLUGINS=1 makes one that "
    "cannot be used an error at once.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the installed heads with package, version and status; NAME shows one in full, check NAME runs the conformance kit on it."""
    ctx.obj = as_json
    if ctx.invoked_subcommand is None:
        _list(load_plugins(), as_json=as_json)


@command.command(hidden=True)
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show(outer_json: bool, name: str, as_json: bool) -> None:
    """Show one head in full: what it answers, its config, its tokens and example targets."""
    plugins = load_plugins()
    spec, entry = plugins.head(name), plugins.owner(name)
    card = _card(spec, entry, plugins.config_class(name))
    if as_json or outer_json:
        echo(json.dumps(card, indent=2))
        return
    _show(spec, card)


@command.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def check(ctx: click.Context, name: str, as_json: bool) -> None:
    """Run the conformance kit on an installed head (on the CPU, in seconds); exit code 1 if a check fails."""
    plugins = load_plugins()
    spec = plugins.head(name)
    from tpo_core.testing import check_head

    report = check_head(spec)
    if as_json or ctx.obj:
        echo(json.dumps({"head": name, "ok": report.ok, "checks": [asdict(result) for result in report.results]}, indent=2))
    else:
        rows = [(result.check, result.outcome, result.message or result.about) for result in report.results]
        print_table(["check", "outcome", "what it asks for, or what was found"], rows, title=f"{name} ({plugins.owner(name).label})")
        passed = sum(result.outcome == "passed" for result in report.results)
        echo(f"{passed} of {len(report.results)} checks passed, {len(report.failures)} failed, in {report.seconds:.1f} s")
    ctx.exit(0 if report.ok else 1)


def _list(plugins: Plugins, *, as_json: bool) -> None:
    heads = plugins.heads()
    if as_json:
        echo(json.dumps([_entry(entry, heads) for entry in plugins.entries], indent=2))
        return
    rows: list[tuple[str, ...]] = []
    for entry in plugins.entries:
        facts = (entry.package, entry.version, entry.api, entry.status)
        why = entry.cause or entry.note
        if not entry.heads:
            rows.append((f"({entry.name})", *facts, why or _brings(entry)))
        rows.extend((name, *facts, why or heads[name].summary) for name in entry.heads)
    print_table(["head", "package", "version", "API", "status", "what it is, or why it cannot be used"], rows)


def _brings(entry: PluginEntry) -> str:
    parts = [f"reader {name}" for name in entry.readers] + [f"backbone {name}" for name in entry.backbones]
    return ", ".join(parts) or "watches training"


def _entry(entry: PluginEntry, heads: dict[str, HeadSpec]) -> dict[str, Any]:
    return {
        "plugin": entry.name,
        "package": entry.package,
        "version": entry.version,
        "api": entry.api,
        "status": entry.status,
        "cause": entry.cause,
        "note": entry.note,
        "heads": [{"name": name, "summary": heads[name].summary if name in heads else None} for name in entry.heads],
        "readers": list(entry.readers),
        "backbones": list(entry.backbones),
    }


def _card(spec: HeadSpec, entry: PluginEntry, config: type[HeadConfig]) -> dict[str, Any]:
    from tpo_core.router import TaskVocabulary

    slots = config.model_fields["slots"].get_default(call_default_factory=True)
    vocabulary = TaskVocabulary(rows=0, slots={spec.name: slots})
    return {
        "name": spec.name,
        "summary": spec.summary,
        "package": entry.package,
        "version": entry.version,
        "api": entry.api,
        "status": entry.status,
        "note": entry.note,
        "metric": {"primary": spec.primary, "fidelity": spec.fidelity},
        "tokens": {"group": vocabulary.group_text(spec.name), "prompt": vocabulary.prompt_text(spec.name)},
        "classes": {part: getattr(spec, part) for part in ("config", "head", "codec", "metric", "draw")},
        "config": config.model_json_schema(),
        "examples": [dict(example) for example in spec.examples],
    }


def _show(spec: HeadSpec, card: dict[str, Any]) -> None:
    echo(f"{spec.name}: {spec.summary}")
    echo(f"  package   {card['package']} {card['version']} (API {card['api']}, {card['status']})")
    if card["note"]:
        echo(f"  note      {card['note']}")
    echo(f"  tokens    {card['tokens']['group']}   (a prompt in the question: {card['tokens']['prompt']})")
    echo(f"  metric    {spec.primary}; a perfect output decodes to at least {spec.fidelity:g}")
    for part, reference in card["classes"].items():
        echo(f"  {part:9} {reference}")
    rows = [(f"heads.{spec.name}.{name}", _type(field), _default(field), field.get("description", "")) for name, field in _fields(card)]
    print_table(["option", "type", "default", "meaning"], rows)
    echo("example targets:")
    for example in card["examples"]:
        echo(f"  {json.dumps({'head': spec.name, **example})}")


def _fields(card: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return list(card["config"].get("properties", {}).items())


def _default(field: dict[str, Any]) -> str:
    return json.dumps(field["default"]) if "default" in field else "must be given"


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " | ".join(json.dumps(value) for value in field["enum"])
    if "anyOf" in field:
        return " | ".join(_type(option) for option in field["anyOf"])
    if "$ref" in field:
        return str(field["$ref"].rsplit("/", 1)[-1])
    if field.get("type") == "array" and isinstance(field.get("items"), dict):
        return f"list of {_type(field['items'])}"
    return str(field.get("const", field.get("type", "any")))
