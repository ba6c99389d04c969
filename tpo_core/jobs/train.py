"""A recipe -> a run's folder: stages from folder to folder, then the held-out figures and pictures.

Every stage builds the model anew and begins from what the stage before left (or from the folder that the stage names): build, freeze,
LoRA, wrap, prepare. Nothing is flipped on a wrapped model.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tpo_core.config.recipe import Recipe, StageConfig
from tpo_core.data.mixture import Draw, Mixture
from tpo_core.data.quarantine import Quarantine
from tpo_core.errors import CheckpointError, TrainError
from tpo_core.jobs.assembly import TRAINED_GROUPS, assemble, capture_state, identity_of, layouts_of, load_heads, restore_state
from tpo_core.jobs.figures import finished, keep_stage_figures, stage_figures, stage_file
from tpo_core.jobs.keeping import kept_states
from tpo_core.jobs.listen import JobListener
from tpo_core.jobs.measure import Answerer, ask_tests, measure_model, open_tests
from tpo_core.jobs.memory import peak_bytes, shared_bytes
from tpo_core.jobs.rates import checked_rates
from tpo_core.jobs.sources import OpenSource, ReadAndPrepare, dry_rows, open_sources, stage_mixture
from tpo_core.model.build import Assembly
from tpo_core.plugins import LoadedHead, Plugins
from tpo_core.predict import Predictor
from tpo_core.prepare import Prepared
from tpo_core.runs import HeadOrigin, RunFolder, RunInfo, RunState, TrainerState, load_run_state, package_versions, utc_now
from tpo_core.train import (
    BadRow,
    Balance,
    Loader,
    Processes,
    StepHook,
    Trainer,
    add_over_processes,
    fixed_parameters,
    freeze,
    freeze_unreached,
    is_sharded,
    make_accelerator,
    micro_batches,
    resolve_rates,
    run_on_main,
    shared_parameters,
    stage_steps,
)

logger = logging.getLogger(__name__)


@dataclass
class TrainJob:
    """Trains a recipe and reports.

    Args:
        recipe: validated, with `heads` narrowed to the installed heads' configs.
        plugins: what is installed.
        resume: go on with the run that the output folder holds; a finished one is only reported.
        test: ask the test sources at the end.
        listener: watches.
        cpu: stay on the CPU.
        answerer: makes what answers the test questions.
        command: what started this, for the report.
    """

    recipe: Recipe
    plugins: Plugins
    resume: bool = False
    test: bool = True
    listener: JobListener = field(default_factory=JobListener)
    cpu: bool = False
    answerer: Answerer = Predictor
    command: str = ""

    def __post_init__(self) -> None:
        self._global_step = 0
        self._last: Assembly | None = None
        self._folder: RunFolder | None = None

    def run(self) -> dict[str, Any]:
        """Train every stage, test, and return the summary, which is also written to ``summary.json``.

        Raises:
            TPOError: one sentence; what was saved stays.
        """
        began = time.perf_counter()
        recipe, output = self.recipe, Path(self.recipe.output)
        if not recipe.stages:
            raise TrainError("the recipe has no stages, so there is nothing to train; add stages, or use tpo eval on a run")
        self._heads = load_heads(self.plugins, recipe.heads)
        self._layouts = layouts_of(self.plugins)
        self._sources = open_sources(recipe.data.train, self.plugins, cache=output / "data")
        self._tests = open_sources(recipe.data.test, self.plugins, cache=output / "data")
        plain = recipe.model_dump(mode="json", by_alias=True)
        self._accelerator = make_accelerator(recipe.trainer, logging_dir=str(output), cpu=self.cpu, run_config=plain)
        if not self._accelerator.is_main_process:
            self.listener = JobListener()
        first = self._assemble(None)
        for stage in recipe.stages:
            # A mistake in the last stage is told before the first one takes its time.
            checked_rates(stage, first.model)
        self._folder = self._open_folder(output, first)
        if self.resume and (done := finished(output)) is not None:
            self.listener.say(f"{output} is finished; nothing to train")
            return done
        self._quarantine = Quarantine(policy=recipe.data.policy, cap=recipe.data.max_bad, path=output / "quarantine.jsonl")
        state, start = self._where_to_begin(output)
        for index, stage in enumerate(recipe.stages):
            if start is not None and index < start.mark.index + start.mark.finished:
                if index == start.mark.index:
                    self._measure_stage(index, state)
                continue
            resumed = start if start is not None and start.mark.index == index and not start.mark.finished else None
            state = self._stage(index, stage, state, resumed)
            self._measure_stage(index, state)
        figures = self._figures(output, state)
        elsewhere = self._used_elsewhere()
        summary = self._report(output, figures, began, elsewhere)
        self._accelerator.end_training()
        return summary

    def _stage(self, index: int, stage: StageConfig, state: RunState | None, resumed: TrainerState | None) -> RunState:
        recipe, accelerator = self.recipe, self._accelerator
        elsewhere = resumed is None and stage.start != "previous"
        if elsewhere:
            state = self._foreign(stage.start)
        assembly = self._assemble(state)
        model = assembly.model
        fixed = fixed_parameters(model)
        if state is not None:
            restore_state(assembly, state, add_heads=elsewhere)
        if resumed is None and state is not None:
            self._begin_heads(index, stage, assembly, known=state.heads if elsewhere else ())
        for name, weight in stage.weights.items():
            model.slot(name).weight = weight
        if stage.assign is not None:
            model.assign_weight = stage.assign
        model.to(accelerator.device)
        mixture, sources = stage_mixture(recipe, stage, self._sources)
        prepare = ReadAndPrepare(sources, assembly.preparer)
        rates = checked_rates(stage, model)
        freeze(model, rates, fixed=fixed)
        unreached = freeze_unreached(model, [assembly.collator()(one) for one in _by_fours(dry_rows(sources, prepare))])
        steps = stage_steps(stage, sum(s.size for s in sources))
        self.listener.mixture(stage.name, mixture.table(steps * stage.batch_size))
        self.listener.frozen(stage.name, unreached)
        with kept_states(stage, model, Path(recipe.output), accelerator) as states:
            self._train_stage(index, assembly, mixture, replace(prepare, states=states), resumed)
        # Questions are shared among processes, which generate different numbers of words: not with weights in shards.
        self._last = None if any(map(is_sharded, model.parameters())) else assembly
        return capture_state(assembly, self._trained_groups(index))

    def _train_stage(self, index: int, assembly: Assembly, mixture: Mixture, prepare: ReadAndPrepare, resumed: TrainerState | None) -> None:
        recipe, accelerator, stage = self.recipe, self._accelerator, self.recipe.stages[index]
        steps = stage_steps(stage, sum(s.size for s in prepare.sources))
        _, size = micro_batches(stage, accelerator.num_processes)
        loader: Loader[Draw, Prepared] = Loader(
            mixture,
            prepare,
            assembly.collator(),
            batch_size=stage.batch_size,
            size=size,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            workers=recipe.data.workers,
            report=lambda bad: self._set_aside(bad, prepare.sources),
        )
        trained = self._trained_groups(index)
        trainer = Trainer(
            assembly.model,
            stage=stage,
            steps=steps,
            batches=loader,
            accelerator=accelerator,
            seed=recipe.seed,
            index=index,
            global_step=self._global_step,
            start=resumed,
            save=lambda trainer_state: self._save(assembly, trained, trainer_state),
            checkpoint_every=recipe.trainer.checkpoint_every,
            log_every=recipe.trainer.log_every,
            log=None if self._folder is None else self._folder.metrics.append,
            observers=[self.listener, StepHook(self.plugins.step_end, "plugins")],
            balance=self._balance(assembly),
        )
        self._global_step = trainer.run().global_step
        trainer.close()

    def _measure_stage(self, index: int, state: RunState | None) -> None:
        """Write the figures after a stage, unless they are there or the run's last ones will be the same. All processes answer."""
        stages = self.recipe.stages
        path = stage_file(self.recipe.output, stages[index].name)
        wanted = self.recipe.trainer.eval_after_stage and self.test and self._tests and index < len(stages) - 1
        if not wanted or path.exists():
            return
        self.listener.say(f"after stage {stages[index].name}")
        sources = open_tests(self._tests, self.recipe.trainer.eval_samples)
        predictor, processes = self.answerer(self._trained_model(state)), Processes(self._accelerator)
        report = ask_tests(predictor, sources, listener=self.listener, processes=processes)
        self.listener.evaluation_ends({})
        run_on_main(self._accelerator, lambda: keep_stage_figures(path, report.to_json()))

    def _trained_model(self, state: RunState | None) -> Assembly:
        """Return the model as the last stage left it, whole in every process.

        Raises:
            CheckpointError: no stage was trained.
        """
        if self._last is None:
            # Resumed where a stage was done and its figures were not; or the weights lie in shards.
            if state is None:
                raise CheckpointError(f"{self.recipe.output}: no stage was trained; choose another --output")
            self._last = self._assemble(state)
            restore_state(self._last, state)
            self._last.model.to(self._accelerator.device)
        return self._last

    def _begin_heads(self, index: int, stage: StageConfig, assembly: Assembly, *, known: Collection[str]) -> None:
        """What happens once, where a stage begins: merged adapters, and tokens of heads that start from another's.

        Args:
            known: heads that the run where the stage begins has trained already.
        """
        if stage.merge_at_start:
            assembly.model.backbone.merge_adapter()
        earlier = {g for s in self.recipe.stages[:index] for g in resolve_rates(s, assembly.model.groups())}
        for name, config in assembly.configs.items():
            group = f"heads.{name}"
            begins = group in resolve_rates(stage, assembly.model.groups()) and group not in earlier
            if config.init_from is not None and begins and name not in known:
                assembly.model.tokens.copy_from(name, config.init_from)

    def _trained_groups(self, index: int) -> frozenset[str]:
        """Groups of the backbone that trained up to and with a stage, so that a checkpoint must hold them."""
        stages = self.recipe.stages[: index + 1]
        groups = {group for stage in stages for group in stage.rates if group in TRAINED_GROUPS}
        return frozenset(groups | ({"llm"} if any(stage.merge_at_start for stage in stages) else set()))

    def _balance(self, assembly: Assembly) -> Balance | None:
        loss = self.recipe.loss
        if loss.balance == "fixed" and loss.measure_every is None:
            return None
        shared = shared_parameters(assembly.model) if loss.measure_every is not None else []
        every = loss.measure_every if shared else None
        if every is None and loss.measure_every is not None:
            self.listener.say("this stage trains no weights that tasks share, so their pulls on them are not measured here")
        return Balance(loss.balance, assembly.model.terms(), shared=shared, measure_every=every)

    def _save(self, assembly: Assembly, trained: frozenset[str], trainer: TrainerState) -> Path | None:
        state = capture_state(assembly, trained)
        return run_on_main(self._accelerator, lambda: self._written(state, trainer))

    def _written(self, state: RunState, trainer: TrainerState) -> Path:
        assert self._folder is not None, "only the main process writes"
        return self._folder.save(state, trainer)

    def _set_aside(self, bad: BadRow[Draw], sources: Sequence[OpenSource]) -> None:
        where = "unknown"
        if bad.draw is not None:
            where = sources[bad.draw.source].records.where(bad.draw.row)
        self._quarantine.add(where, None, bad.message)

    def _assemble(self, state: RunState | None) -> Assembly:
        adapter = None if state is None else state.adapter_config
        return assemble(self.recipe, self._heads, layouts=self._layouts, adapter=adapter)

    def _open_folder(self, output: Path, assembly: Assembly) -> RunFolder | None:
        info = RunInfo(
            created=utc_now(),
            config=self.recipe.model_dump(mode="json", by_alias=True),
            versions=package_versions(),
            heads={head.name: HeadOrigin(package=head.package, version=head.version) for head in self._heads},
            backbone=identity_of(assembly.model.backbone),
            data={s.name: str(s.records.fingerprint["sha256"]) for s in self._sources},
        )
        return run_on_main(self._accelerator, lambda: RunFolder.open(output, info, resume=self.resume, keep=self.recipe.trainer.keep))

    def _where_to_begin(self, output: Path) -> tuple[RunState | None, TrainerState | None]:
        if not self.resume:
            return None, None
        installed = [head.name for head in self._heads]
        if self._folder is not None:
            loaded = self._folder.latest(installed=installed)
        else:
            loaded = load_run_state(output, installed=installed, trainer=True) if any(output.glob("checkpoint-*")) else None
        if loaded is None:
            return None, None
        for note in loaded.notes:
            self.listener.say(note)
        if loaded.trainer is not None:
            self._global_step = loaded.trainer.mark.global_step
            self.listener.say(f"going on from {loaded.path} (stage {loaded.trainer.mark.name!r}, step {loaded.trainer.mark.step})")
        return loaded.state, loaded.trainer

    def _foreign(self, folder: str) -> RunState:
        backbone = identity_of(self._assemble(None).model.backbone)
        loaded = load_run_state(folder, installed=[head.name for head in self._heads], backbone=backbone)
        for note in loaded.notes:
            self.listener.say(note)
        for head in self._heads:
            if head.name not in loaded.state.heads:
                self.listener.say(f"{folder} has no head {head.name!r}: it is added, untrained")
        return loaded.state

    def _used_elsewhere(self) -> tuple[float, float]:
        """Return CPU seconds and peak bytes of the other processes, on the main one, which has the machine to itself from here on.

        What they share with it (libraries) is not counted again.
        """
        mine = torch.tensor([time.process_time(), peak_bytes() - shared_bytes()], dtype=torch.float64)
        seconds, peak = (add_over_processes(mine, self._accelerator) - mine).tolist()
        if self._accelerator.num_processes > 1 and self._accelerator.device.type == "cpu":
            torch.set_num_threads(torch.get_num_threads() * self._accelerator.num_processes)
        return seconds, peak

    def _figures(self, output: Path, state: RunState | None) -> dict[str, Any]:
        """Ask all test records, all processes together; the main one gets the figures."""
        model = self._trained_model(state)
        if not (self.test and self._tests):
            return {"heads": {}, "chance": {}, "conversation": {}, "blind": {}, "assignment": {}}
        return measure_model(
            model,
            self._tests,
            trained_on=self._sources,
            output=output,
            most=self.recipe.trainer.eval_samples,
            listener=self.listener,
            answerer=self.answerer,
            processes=Processes(self._accelerator),
        )

    def _report(self, output: Path, figures: dict[str, Any], began: float, elsewhere: tuple[float, float]) -> dict[str, Any]:
        if not self._accelerator.is_main_process or self._folder is None or self._last is None:
            return {}
        if self.test and self._tests and self.recipe.trainer.eval_after_stage:
            figures["stages"] = stage_figures(output, [stage.name for stage in self.recipe.stages], figures)
        summary = {
            **figures,
            "seconds": round(time.perf_counter() - began, 1),
            "cpu_seconds": round(time.process_time() + elsewhere[0], 1),
            "peak_rss_bytes": peak_bytes() + int(elsewhere[1]),
            "bad_rows": len(self._quarantine),
            "steps": self._global_step,
            "output": str(output),
        }
        self._folder.finish(summary)
        if self.recipe.trainer.report:
            self._write_report(output, self._last, summary)
        self.listener.evaluation_ends(summary)
        return summary

    def _write_report(self, output: Path, assembly: Assembly, summary: Mapping[str, Any]) -> None:
        """Write ``report.html``. The run is safe on the disk by now: what goes wrong here is told and costs no more than the page."""
        from tpo_core.jobs.report import story_of, write_report

        assert self._folder is not None, "only the main process reports"
        try:
            info = self._folder.info
            story = story_of(self.recipe, info, summary, command=self.command, train=self._sources, tests=self._tests, assembly=assembly)
            write_report(output, story)
        except Exception as error:
            logger.exception("the report could not be written")
            self.listener.say(f"report.html could not be written ({type(error).__name__}: {error}); the run itself is complete")


def _by_fours(samples: Sequence[Prepared]) -> list[list[Prepared]]:
    return [list(samples[i : i + 4]) for i in range(0, len(samples), 4)]


def train_recipe(recipe: Recipe, plugins: Plugins, *, resume: bool = False, listener: JobListener | None = None) -> Mapping[str, Any]:
    """Train a recipe; see `TrainJob`."""
    return TrainJob(recipe, plugins, resume=resume, listener=listener or JobListener()).run()


__all__ = ["LoadedHead", "TrainJob", "train_recipe"]
