"""From the names on a card to the classes: imported when a run uses the head, and checked for what they must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tpo_core.contract import HeadConfig, HeadSpec
from tpo_core.errors import PluginBroken, did_you_mean
from tpo_core.plugins.blame import blame
from tpo_core.plugins.load import one_line

if TYPE_CHECKING:
    from tpo_core.head import Codec, Head, Metric


@dataclass(frozen=True)
class LoadedHead:
    """A head whose classes are imported and checked. Picklable where the classes are."""

    spec: HeadSpec
    package: str
    version: str
    config: type[HeadConfig]
    head: type[Head[Any]]
    codec: type[Codec[Any]]
    metric: type[Metric]
    draw: Callable[..., None] | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def origin(self) -> str:
        """Return ``package version``, for messages."""
        return f"{self.package} {self.version}"

    def blame(self) -> AbstractContextManager[None]:
        """Return a context that adds head, package and version as a note to exceptions raised inside plugin code."""
        return blame(self.name, self.origin)


def resolve(reference: str, owner: str = "") -> Any:
    """Import ``"package.module:Name"`` and return the object.

    Args:
        owner: whose reference it is, for messages: ``head 'foo' (tpo-head-foo 1.2)``.

    Raises:
        PluginBroken: the module does not import (the cause is chained) or has no such name.
    """
    module_name, _, name = reference.partition(":")
    prefix = f"{owner}: " if owner else ""
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:
        raise PluginBroken(f"{prefix}{reference} cannot be imported: {one_line(error)}") from error
    try:
        return getattr(module, name)
    except AttributeError as error:
        near = did_you_mean(name, (known for known in vars(module) if not known.startswith("_")))
        raise PluginBroken(f"{prefix}{module_name} has no {name!r}; correct the card.{near}") from error


def resolve_config(spec: HeadSpec, package: str, version: str) -> type[HeadConfig]:
    """Return the head's config class; imports that module alone.

    Raises:
        PluginBroken: it does not import, or is not a `HeadConfig`.
    """
    config: type[HeadConfig] = _resolve_class(spec.config, HeadConfig, "config", _owner(spec, package, version))
    return config


def resolve_head(spec: HeadSpec, package: str, version: str) -> LoadedHead:
    """Import the classes that a card names and check them.

    Raises:
        PluginBroken: one does not import, or is not of the class it must be.
    """
    from tpo_core.head import Codec, Head, Metric

    owner = _owner(spec, package, version)
    draw = resolve(spec.draw, owner) if spec.draw is not None else None
    if draw is not None and not callable(draw):
        raise PluginBroken(f"{owner}: draw = {spec.draw} is {type(draw).__name__}, expected a function draw(canvas, answers, target)")
    return LoadedHead(
        spec=spec,
        package=package,
        version=version,
        config=resolve_config(spec, package, version),
        head=_resolve_class(spec.head, Head, "head", owner),
        codec=_resolve_class(spec.codec, Codec, "codec", owner),
        metric=_resolve_class(spec.metric, Metric, "metric", owner),
        draw=draw,
    )


def _owner(spec: HeadSpec, package: str, version: str) -> str:
    return f"head {spec.name!r} ({package} {version})"


def _resolve_class(reference: str, base: type[Any], part: str, owner: str) -> Any:
    found = resolve(reference, owner)
    _demand_class(found, base, f"{owner}: {part} = {reference}")
    return found


def check_parts(name: str, parts: Mapping[str, Any]) -> None:
    """Check what stands in for parts of a head.

    Raises:
        PluginBroken: one is not of the class it must be.
    """
    from tpo_core.head import Codec, Head, Metric

    bases = {"config": HeadConfig, "head": Head, "codec": Codec, "metric": Metric}
    for part, value in parts.items():
        if part in bases:
            _demand_class(value, bases[part], f"head {name!r}: {part}")


def _demand_class(found: object, base: type[Any], what: str) -> None:
    if not (isinstance(found, type) and issubclass(found, base)):
        kind = f"class {found.__name__}" if isinstance(found, type) else type(found).__name__
        raise PluginBroken(f"{what} is a {kind}, expected a subclass of {base.__module__}.{base.__name__}")
