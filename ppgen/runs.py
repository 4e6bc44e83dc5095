"""Runs: a folder that holds everything needed to repeat, resume, judge and share one training."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ppgen import data as datasets
from ppgen import monitoring, results
from ppgen.configuration import Config, Resolved, from_toml, identity, read_config, versions
from ppgen.data import Dataset
from ppgen.devices import choose_device, threads_for
from ppgen.errors import CheckpointError, ConfigError, DivergedError
from ppgen.places import create_folder, load_again, load_together, open_folder, place_for, recipe_of
from ppgen.processes import Processes
from ppgen.progress import Progress, for_length, lengthened, read_progress
from ppgen.randomness import seed_all
from ppgen.recipes import Entry, find
from ppgen.sampling import Sampler, sampler_of
from ppgen.storage import Checkpoint, RunFolder, pack, unpack
from ppgen.training import Trainer

REPORTS = 100
"""How often a run reports, over its length."""
CHECKPOINTS = 20
"""How often it writes a checkpoint."""
MOST_ROLLBACKS = 3

Record = dict[str, Any]
logger = logging.getLogger("ppgen")


def resolve(config: Config, entry: Entry) -> Config:
    """Returns the configuration with every default of the recipe filled in, and paths that hold from any folder.

    Raises:
        ConfigError: if an option is unknown or has a wrong value.
    """
    options = dict(config.options)
    if config.epochs is not None and "epochs" in entry.defaults():
        options["epochs"] = config.epochs
    data = config.data.model_copy()
    if data.name in datasets.names():
        data.labels = entry.labels if data.labels is None else data.labels
    elif os.path.exists(os.path.expanduser(data.name)):
        data.name = os.path.abspath(os.path.expanduser(data.name))
    if data.root is not None:
        data.root = os.path.abspath(os.path.expanduser(data.root))
    resolved = entry.resolve(data.name, options)
    return config.model_copy(update={"options": resolved, "data": data})


class Run:
    """One training: its data, recipe, trainer, and (once it has one) its folder.

    Make it with `create` or `open`; within ``with run.folder.lock():`` it may `train`.

    Attributes:
        config: everything needed to repeat it.
        entry: the recipe by name.
        recipe: model, guide, objective and settings.
        data: as the recipe binarised it.
        loaded: as it was loaded.
        trainer: what holds the parameters.
        folder: where it lives.
        steps: how many it takes.
        seconds: how long it has trained.
        processes: those that train it together.
    """

    folder: RunFolder

    def __init__(self, config: Config, entry: Entry, data: Dataset, processes: Processes | None = None) -> None:
        self.config, self.entry = config, entry
        self.processes = processes or Processes()
        seed_all(config.seed)
        self.recipe = entry.build(data, config.options)
        self.data = self.recipe.data or data
        self.loaded = data
        resolved = config.resolved
        device = self.processes.device(choose_device(resolved.device if resolved else config.device))
        self.batches = self.recipe.batches(config.seed, device)
        epochs = config.epochs or self.recipe.epochs
        sampler = sampler_of(self.recipe, config, device, self.processes)
        self.steps = sampler.sampling.steps if sampler else config.steps or epochs * self.batches.steps_per_epoch
        self.trainer: Trainer | Sampler = sampler or self._trainer(resolved, device)
        self.seconds = 0.0
        self._metrics_size = self._rollbacks = 0
        self._trained_by = self.processes.size
        self._rewritten: Config | None = None
        self._set_up(resolved)

    def _trainer(self, resolved: Resolved | None, device: torch.device) -> Trainer:
        return Trainer(
            self.recipe.model,
            self.recipe.guide,
            self.recipe.objective,
            self.recipe.optimizer(self.steps),
            total_steps=self.steps,
            average=self.recipe.average,
            device=device,
            precision=resolved.precision if resolved else self.recipe.precision(self.config.precision, device),
            compile=self.config.compile,
            nonfinite="skip" if self.config.on_nan == "skip" else "raise",
            processes=self.processes,
        )

    def _set_up(self, resolved: Resolved | None) -> None:
        first = next(self.batches)
        self.batches.position = 0
        self.trainer.setup(first)
        parameters = sum(leaf.numel() for leaf in self.trainer.leaves.values())
        asked = resolved.threads if resolved else self.config.threads
        self.threads = int(self.processes.leading(asked or threads_for(parameters, self.recipe.batch_size)))
        torch.set_num_threads(self.threads)
        if resolved is None:
            self.trainer.plan(first)
        else:
            self.trainer.decide(resolved.compiled)

    @classmethod
    def create(cls, config: Config, out: str | Path | None = None, *, processes: Processes | None = None) -> "Run":
        """Builds a run from scratch and makes its folder; nothing is written unless all of it can be built.

        Raises:
            ConfigError: if the configuration is wrong or the folder exists.
            DataError: if the data cannot be used.
            StorageError: if the folder cannot be written.
        """
        entry = find(config.recipe)
        config = resolve(config, entry)
        team = processes or Processes()
        path = place_for(config, out, team)
        RunFolder(path).refuse_content()  # at once, not after minutes of loading
        data = load_together(config, team)
        run = cls(config, entry, data, team)
        run.config = config.model_copy(
            update={
                # how much memory is free may differ when it is resumed, and the order of streamed rows is another
                "data": config.data.model_copy(update={"stream": data.streamed}),
                "resolved": Resolved(
                    steps=run.steps,
                    device=str(run.trainer.device),
                    precision=run.trainer.precision,
                    compiled=run.trainer.compiled,
                    threads=run.threads,
                    fingerprint=data.fingerprint,
                    versions=versions(),
                ),
            }
        )
        run.folder = create_folder(path, team)
        return run

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        recipe: str | None = None,
        data_root: str | Path | None = None,
        processes: Processes | None = None,
        untrained: bool = False,
        epochs: int | None = None,
        steps: int | None = None,
    ) -> "Run":
        """Rebuilds a run from its folder, with the newest valid checkpoint loaded.

        Args:
            path: the run folder.
            recipe: names the user's own recipe again, since opening a folder runs no code that the folder names.
            data_root: where data sets lie on this machine; the user's own file may have moved there too.
            processes: those that go on with it together.
            untrained: whether a run that was killed before its first checkpoint may begin anew; else it is refused,
                since it holds nothing to judge or to draw from.
            epochs: makes it so long; as if it had been from the start, where no schedule depends on the length.
            steps: likewise.

        Raises:
            CheckpointError: if the folder, its data or its checkpoints do not fit, or there are no checkpoints.
            ConfigError: if its configuration is not valid, or its recipe is the user's own and not named.
            DataError: if its data are not there.
        """
        team = processes or Processes()
        folder = open_folder(path, team)
        source = str(folder.path / "config.toml")
        config = read_config(from_toml(folder.read_text("config.toml"), source=source), source=source)
        resolved = config.resolved
        if resolved is None:
            raise CheckpointError(f"{source} is not that of a run: it has no [resolved] part")
        entry = recipe_of(config, recipe)
        config = lengthened(config, epochs=epochs, steps=steps)
        asked = config.model_copy(deep=True)
        data = load_again(config, data_root)
        if data.fingerprint != resolved.fingerprint:
            raise CheckpointError(
                f"the data have changed since the run began: '{config.data.name}' has fingerprint"
                f" {data.fingerprint[:12]}; expected {resolved.fingerprint[:12]}"
            )
        changed = [
            f"{k} {v} became {versions().get(k)}" for k, v in resolved.versions.items() if versions().get(k) != v
        ]
        if changed:
            logger.warning("versions have changed (%s): the run continues, but not bit for bit", ", ".join(changed))
        config.options = entry.resolve(config.data.name, config.options)
        run = cls(config, entry, data, team)
        run.folder = folder
        if run.steps != resolved.steps:
            run._rewritten = asked.model_copy(update={"resolved": resolved.model_copy(update={"steps": run.steps})})
        run.load(untrained=untrained)
        if run.trainer.steps > run.steps:
            raise ConfigError(f"the run has taken {run.trainer.steps:,} steps; got a length of {run.steps:,}")
        return run

    # ---------------------------------------------------------------------------------------------- checkpoints

    def load(self, *, untrained: bool = True) -> None:
        """Loads the newest valid checkpoint.

        Args:
            untrained: whether a run that has none yet, nor any records, may begin anew.

        Raises:
            CheckpointError: if there is no valid one, or it is of another run.
        """
        if not self.folder.checkpoints(recover=True):
            self.folder.refuse_remains(untrained=untrained)
            return
        checkpoint = self.folder.load_checkpoint()
        for sentence in checkpoint.skipped:
            logger.warning("%s; step %d is used", sentence, checkpoint.step)
        self._restore(checkpoint)

    def _restore(self, checkpoint: Checkpoint) -> None:
        source = f"checkpoint {checkpoint.step} of {self.folder.path}"
        found = read_progress(checkpoint.meta, source=source)
        found.require_identity(self.config, source=source)
        state = unpack(checkpoint.tensors, found.state)
        if not self.recipe.sampling:
            state = for_length(
                state, found, self.recipe.optimizer(self.steps), steps=self.steps, device=self.trainer.device
            )
        self.trainer.load_state_dict(state)
        if self.trainer.steps != checkpoint.step:
            raise CheckpointError(f"{source} holds the state after {self.trainer.steps} steps")
        self.batches.position = found.position
        self.seconds = found.seconds
        self._metrics_size = found.metrics_size
        self._rollbacks = found.rollbacks
        self._trained_by = found.processes

    def save(self) -> Path:
        """Writes a checkpoint of the present step.

        Raises:
            DivergedError: if what was trained is not finite; such a state is never written.
            StorageError: if it cannot be written; older checkpoints stay.
        """
        self.trainer.check_finite()
        tensors, state = pack(self.trainer.state_dict())
        for name, tensor in tensors.items():
            # a program's buffers may hold infinities from the first, such as the mask of an attention
            if name.startswith(("players/", "average/")) and not tensor.isfinite().all():
                what = name.rpartition("/")[2]
                raise DivergedError(f"'{what}' is not finite after step {self.trainer.steps}: lower the learning rate")
        self.processes.require_equal(tensors, step=self.trainer.steps)
        progress = Progress(
            state=state,
            position=self.batches.position,
            seconds=self.seconds,
            identity=identity(self.config),
            metrics_size=self.folder.metrics_size,
            rollbacks=self._rollbacks,
            processes=self.processes.size,
            length=self.steps,
        )
        return self.folder.save_checkpoint(self.trainer.steps, tensors, dict(progress))

    def require_processes(self) -> None:
        """Checks that as many processes go on with the run as have trained it.

        Raises:
            CheckpointError: if not.
        """
        if (before := self._trained_by) != (now := self.processes.size):
            raise CheckpointError(
                f"the run was trained by {before} process{'es' if before > 1 else ''}; got {now}: start as many"
                " (torchrun --nproc-per-node), or give --change-processes, with which only rounding differs"
            )

    # ------------------------------------------------------------------------------------------------- training

    def train(self, until: Callable[[], bool] = lambda: False) -> Iterator[Record]:
        """Trains to the end, or until ``until()`` holds; saves a checkpoint at the end either way.

        Yields:
            What goes to ``metrics.jsonl``: step, epoch, losses, validation measures, seconds, images_per_second.

        Raises:
            DivergedError: if a step was not finite (under "rollback", after three roll-backs).
            StorageError: if the folder cannot be written.
        """
        self._begin()
        every = max(1, self.steps // REPORTS)
        sampling = self.recipe.sampling  # whose state is that of its finished chains
        between = sampling.length if sampling else every * max(1, REPORTS // CHECKPOINTS)
        while self.trainer.steps < self.steps and not until():
            try:
                yield from self._window(every, until)
                if self.trainer.steps % between == 0 or self.trainer.steps == self.steps:
                    if self._is_watched:
                        step = self.trainer.steps
                        monitoring.draw_samples(self.trainer, self.data, self.folder.path, step=step)
                    self.save()
            except DivergedError as error:
                self._roll_back(error)
        if not sampling:
            self.save()

    def _begin(self) -> None:
        if self.processes.leading(bool(self.folder.checkpoints())):
            self.folder.truncate_metrics(self._metrics_size)
            if self._rewritten is not None:
                self.folder.write_text("config.toml", self._rewritten.to_toml())
            return
        self.folder.write_text("config.toml", self.config.to_toml())
        self.folder.truncate_metrics(0)
        # a disk that cannot hold checkpoints shows at once, and a loss that diverges early has where to go back to
        self.save()

    def _window(self, every: int, until: Callable[[], bool]) -> Iterator[Record]:
        count = min(every - self.trainer.steps % every, self.steps - self.trainer.steps)
        before, start, compiling = self.batches.position, time.perf_counter(), self.trainer.compiling_seconds
        for metrics in self.trainer.fit(self.batches, steps=count, every=count, until=until):
            seconds = time.perf_counter() - start
            self.seconds += seconds
            rows = (self.batches.position - before) * self.recipe.rows_per_batch
            record: Record = {**metrics, "seconds": self.seconds}
            if not self.recipe.sampling:
                compiled = self.trainer.compiling_seconds - compiling
                record["epoch"] = self.trainer.steps / self.batches.steps_per_epoch
                record["images_per_second"] = rows / (seconds - compiled)
                record |= {"compile_seconds": compiled} if compiled else {}
            if self._is_watched:
                record = monitoring.looked_at(record, self.trainer, self.data, self.folder)
            self.folder.append_metrics(record)
            yield record

    @property
    def _is_watched(self) -> bool:
        return self.processes.leads and not self.recipe.sampling

    def _roll_back(self, error: DivergedError) -> None:
        if self.config.on_nan != "rollback" or self._rollbacks >= MOST_ROLLBACKS:
            raise error
        count = self._rollbacks + 1
        self.load()
        self.folder.truncate_metrics(self._metrics_size)
        # the learning rate of the checkpoint may have been halved before it was written
        self.trainer.scale_learning_rate(0.5 ** (count - self._rollbacks))
        self._rollbacks = count
        logger.warning("%s; back to step %d with half the learning rate", error, self.trainer.steps)

    # ------------------------------------------------------------------------------------------------- judgement

    def result(
        self, *, particles: int | None = None, measures: tuple[str, ...] = (), samples: int | None = None
    ) -> Record:
        """Judges the run on its test rows: the document that ``--json`` prints. See `results.judged`."""
        return results.judged(self, particles=particles, measures=measures, samples=samples)

    def write_pictures(self) -> list[Path]:
        """Draws ``samples.png``, ``reconstructions.png`` and ``training.png`` into the folder; returns those drawn."""
        from ppgen.evaluation import pictures

        return pictures.draw_all(self.trainer, self.data, self.folder.metrics(), self.folder.path)

    def judge(self) -> Record:
        """Judges the finished run, draws its pictures and keeps the result as ``result.json``.

        A program without a data plate cannot be judged row by row: it is warned of, and ``test`` is empty.
        """
        try:
            document = self.result()
        except ConfigError as error:
            logger.warning("not judged on test rows: %s", error)
            document = results.documented(self, {})
        self.write_pictures()
        self.folder.write_text("result.json", json.dumps(document, indent=2) + "\n")
        return document


def load_run(path: str | Path, *, recipe: str | None = None, data_root: str | Path | None = None) -> Run:
    """Opens the folder of a trained run: see `Run.open`."""
    return Run.open(path, recipe=recipe, data_root=data_root)
