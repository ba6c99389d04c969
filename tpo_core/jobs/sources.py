"""A recipe's sources: opened, mixed per stage, and read row by row in data workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tpo_core._version import __version__
from tpo_core.config.recipe import Recipe, Source, StageConfig
from tpo_core.data.chat_formats import read_llava, read_videochat2_it
from tpo_core.data.index import RecordFile
from tpo_core.data.mixture import Draw, Mixture
from tpo_core.data.mixture import Source as MixtureSource
from tpo_core.data.readers import Reader, convert
from tpo_core.data.records import Record
from tpo_core.errors import ConfigError, DataError, did_you_mean
from tpo_core.plugins import Plugins
from tpo_core.prepare import Prepared, SamplePreparer
from tpo_core.prepare.kept import StateFolder

READERS: Mapping[str, Reader] = {"llava": read_llava, "videochat2_it": read_videochat2_it}
"""Formats of conversations that core itself reads."""

NATIVE = "tpo"
"""Name of the project's own format; it needs no reader."""


@dataclass(frozen=True)
class OpenSource:
    """One set of records, open for random access. Picklable.

    Args:
        name, weight: as in the recipe.
        records: its rows.
        size: how many of them are used.
        root: folder that media paths are relative to.
    """

    name: str
    records: RecordFile
    size: int
    root: Path
    weight: float | None = None

    def record(self, row: int) -> Record:
        """Return a row's record.

        Raises:
            DataError: ``file:line: ...``.
        """
        return self.records[row]

    def rows(self) -> Iterator[tuple[str, Record | DataError]]:
        """Yield (file:line, record) of every row that is used; the error in place of a record that is not valid."""
        for row in range(self.size):
            where = self.records.where(row)
            try:
                yield where, self.records[row]
            except DataError as error:
                yield where, error


def open_sources(sources: Sequence[Source], plugins: Plugins, *, cache: Path) -> list[OpenSource]:
    """Open a recipe's sources; other formats than our own are converted once into the cache folder.

    Raises:
        TPOError: an unknown reader. DataError: a file is missing or empty.
    """
    return [_open(source, plugins, cache) for source in sources]


def _open(source: Source, plugins: Plugins, cache: Path) -> OpenSource:
    if source.reader == NATIVE:
        records = RecordFile(source.path)
    else:
        read, version = _reader(source.reader, plugins)
        records = convert(read, source.path, name=source.reader, version=version, cache=cache)
    size = len(records) if source.max_samples is None else min(len(records), source.max_samples)
    root = Path(source.root) if source.root is not None else records.root
    return OpenSource(source.name, records, size, root, source.weight)


def _reader(name: str, plugins: Plugins) -> tuple[Reader, str]:
    """Return a reader and what tells its version: one of ours, or one that a package announces."""
    if name in READERS:
        return READERS[name], __version__
    if name not in plugins.readers():
        known = [NATIVE, *READERS, *plugins.readers()]
        raise ConfigError(f"no reader {name!r}; known: {', '.join(known)}.{did_you_mean(name, known)}")
    owner = plugins.reader_owner(name)
    read: Reader = plugins.resolve(plugins.reader(name).reader)
    return read, f"{owner.package} {owner.version}"


def stage_mixture(recipe: Recipe, stage: StageConfig, sources: Sequence[OpenSource]) -> tuple[Mixture, list[OpenSource]]:
    """Return the stage's mixture and its sources, in the mixture's order.

    Raises:
        ConfigError: the stage names a source that the recipe has not, or leaves none.
    """
    weights: Mapping[str, float] | None = stage.sources
    known = [source.name for source in sources]
    for name in weights or {}:
        if name not in known:
            near = did_you_mean(name, known) or f" It has: {', '.join(known)}"
            raise ConfigError(f"stage {stage.name!r}: sources names {name!r}, which data.train has not.{near}")
    chosen = [s for s in sources if weights is None or weights.get(s.name, 0.0) > 0]
    if not chosen:
        raise ConfigError(f"stage {stage.name!r} has no source with a weight above 0; name some of {', '.join(known) or 'data.train'}")
    mixed = [MixtureSource(s.name, s.size, weights[s.name] if weights is not None else s.weight) for s in chosen]
    return Mixture(mixed, recipe.seed, temperature=recipe.data.temperature), chosen


@dataclass(frozen=True)
class ReadAndPrepare:
    """Draw -> prepared sample, in a data worker. Picklable.

    Args:
        sources: in the mixture's order.
        preparer: of the built model.
        states: where what the language model gave for a sample is kept, in a stage that keeps it.
    """

    sources: Sequence[OpenSource]
    preparer: SamplePreparer
    states: StateFolder | None = None

    def __call__(self, draw: Draw) -> Prepared:
        source = self.sources[draw.source]
        record = source.record(draw.row)
        name, kept = "", None
        # A spatial prompt is embedded by its head, which trains.
        if self.states is not None and all(target.role != "prompt" for target in record.targets):
            name = f"{source.name}-{draw.row}"
            kept = self.states.get(name)
        try:
            return self.preparer.training(record, root=source.root, seed=draw.seed, name=name, kept=kept)
        except DataError as error:
            raise DataError(f"{source.records.where(draw.row)}: record {record.id!r}: {error}") from error


def dry_rows(sources: Sequence[OpenSource], prepare: Callable[[Draw], Prepared], *, per_source: int = 4, tries: int = 64) -> list[Prepared]:
    """Return a few prepared samples of every source, for the dry step that finds what no path reaches.

    Bad rows are passed over here; training sets them aside.

    Raises:
        DataError: none of the first rows of any source can be used; the last one's fault.
    """
    samples: list[Prepared] = []
    fault: DataError | None = None
    for index, source in enumerate(sources):
        found = 0
        for row in range(min(source.size, tries)):
            if found == per_source:
                break
            try:
                samples.append(prepare(Draw(source=index, row=row, epoch=0, seed=(row,))))
                found += 1
            except DataError as error:
                fault = error
    if not samples and fault is not None:
        raise DataError(f"none of the first rows can be used; the last: {fault}") from fault
    return samples
