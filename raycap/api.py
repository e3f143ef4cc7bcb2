"""Sweeps as Python objects: they are planned, run and reported as by the commands, with the same files and records."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rich.console import Console

from raycap import pipeline
from raycap.cluster.budget import UNBOUNDED, Budget
from raycap.errors import CannotRunError
from raycap.pipeline import EXIT_BAD_SPEC, EXIT_INTERRUPTED, Invocation
from raycap.plan.inventory import inventory
from raycap.results import Evaluation, PlannedTrial, SweepRecord, TrialResult
from raycap.spec import SweepSpec, TrialSpec
from raycap.spec.document import SpecError
from raycap.spec.file import PYTHON_SOURCE, LoadedSweep, load_sweep, load_tree
from raycap.storage import Storage, result_path
from raycap.storage.checksum import verify_checksum
from raycap.terminal.format import wide_console
from raycap.terminal.plan_table import plan_entries

if TYPE_CHECKING:
    import pandas as pd

    from raycap.analysis.frames import Results


class Sweep:
    """A sweep that can be planned and run. `raycap.load` returns the results of one that has run."""

    def __init__(self, loaded: LoadedSweep, source: str) -> None:
        """Take a validated sweep and the source of its spec, which errors name; see `from_yaml` and `from_dict`."""
        self._loaded, self._source = loaded, source

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], *overrides: str) -> "Sweep":
        """Read a sweep file.

        Args:
            path: Path of the file, from the working directory or from `sweeps/`.
            overrides: Changes to the spec as on the command line, such as "trial.training.batch_size=64".

        Raises:
            SpecError: The file, an override or a point of the grid is invalid.
        """
        return cls(load_sweep(os.fspath(path), overrides), os.fspath(path))

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any] | SweepSpec, *overrides: str, question: str = "") -> "Sweep":
        """Take the contents of a sweep file as Python values.

        Args:
            spec: A SweepSpec, or its fields. Values may also be NumPy arrays and other specs, such as
                `raycap.spec.ModelByWidth(...)`.
            overrides: Changes to the spec, as for `from_yaml`.
            question: The question that the sweep answers. In a file it is the first comment.

        Raises:
            SpecError: A value, an override or a point of the grid is invalid.
        """
        return cls(load_tree(spec, question, overrides), PYTHON_SOURCE)

    @cached_property
    def _planned(self) -> tuple[SweepRecord, Storage]:
        return pipeline.plan_loaded(self._loaded, self._source)

    @property
    def spec(self) -> SweepSpec:
        """The validated spec."""
        return self._loaded.spec

    @property
    def trials(self) -> tuple[PlannedTrial, ...]:
        """The trials with their resolved specs, sizes and bits. Raises SpecError if a trial cannot be resolved."""
        return self._planned[0].trials

    @property
    def folder(self) -> str:
        """Absolute path or URI of the folder of the sweep, which `raycap.load` and the commands take."""
        storage = self._planned[1]
        return storage.location(self.spec.name)

    def plan(self) -> "pd.DataFrame":
        """Return a data frame with one row per trial: its sizes, bits, length, and its state with the reason.

        Columns: trial_id, label, state, reason, the axes of the grid by dotted path, num_params,
        num_non_embedding_params, dataset_bits and demanded_bits_per_param under the headline's selection scheme, tokens,
        tokens_exact, steps, stack (ids of the trials that train together) and warnings. States are read anew at each call.

        Raises:
            SpecError: A trial cannot be resolved.
        """
        import pandas as pd

        from raycap.analysis.tables import grid_columns

        record, storage = self._planned
        frame = pd.DataFrame(plan_entries(record, record.trials, inventory(record, storage)))
        selection = str(record.spec.analysis.headline[1])
        for name in ("dataset_bits", "demanded_bits_per_param"):
            frame[name] = [bits[selection] for bits in frame[name]]
        frame["state"] = frame["state"].map(str)
        first = ["trial_id", "label", "state", "reason"]
        return pd.concat(
            [frame[first], grid_columns(record.trials), frame.drop(columns=[*first, "coordinates"])], axis=1
        )

    def run(
        self,
        *,
        trials: str | Iterable[str] | None = None,
        only_failed: bool = False,
        budget: str | None = None,
        quiet: bool = False,
    ) -> "Results":
        """Train the missing trials with Ray, fit the laws and write the report, as `raycap run` does.

        The call returns when all trials have finished or failed, or the budget is spent. The results list trials that
        failed or are missing as such, and the same call continues with them. Ray is started for the call unless this
        process is already connected to it or RAY_ADDRESS names a cluster; it is not started if no trial is missing.

        Args:
            trials: Run only these trials: ids, labels, or unique prefixes of them.
            only_failed: Run only trials whose last run failed.
            budget: Stop at this time, these GPU hours or this cost, such as "30m", "20gpuh" or "50usd".
            quiet: Print nothing.

        Raises:
            SpecError: The sweep is locked, or it cannot run here.
            CannotRunError: Ray died during the run.
            KeyboardInterrupt: Ctrl-C, or an interrupted notebook. Running trials have saved checkpoints before it is
                raised; after a second one they may not have.
        """
        began = time.monotonic()
        only = trials if trials is None or isinstance(trials, str) else ",".join(trials)
        console = Console(quiet=True) if quiet else wide_console()
        try:
            limit = UNBOUNDED if budget is None else Budget.parse(budget)
        except ValueError as error:
            raise SpecError([f"budget: {error}"]) from None
        invocation = Invocation(self._source, "call run() again", "call run(only_failed=True)")
        code = pipeline.run_planned(
            *self._planned, invocation, console, began, only_failed=only_failed, only=only, budget=limit
        )
        if code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt
        if code == EXIT_BAD_SPEC:
            raise CannotRunError("Ray died during the run", "call run() again to continue")
        from raycap.analysis.frames import load

        return load(self.folder)

    def report(self, *, paper: bool = False) -> "Results":
        """Analyse the stored results, write the report as `raycap report` does, and return the results, without Ray.

        With `paper`, the figures are also written as PDFs. Raises SpecError if the sweep has not run.
        """
        from raycap.analysis.frames import Results

        return Results(pipeline.write_report(*self._planned, paper=paper))

    def __repr__(self) -> str:
        return f"<sweep {self.spec.name}: {len(self._loaded.points)} points. {self._loaded.question}>"


def run_trial(
    trial: Mapping[str, Any] | TrialSpec,
    *,
    storage: str | None = None,
    device: str = "cpu",
    num_threads: int = 1,
    report: Callable[[Evaluation], None] = lambda evaluation: None,
) -> TrialResult:
    """Train and evaluate one trial in this process, without Ray and MLflow, and return its result.

    With a storage, the trial gets the files that a sweep writes for it, with equal losses: a sweep that contains the trial
    counts it as finished. If it has a result there already, that is returned; if it has a checkpoint, it resumes. Give
    a trial to one process at a time.

    Args:
        trial: A TrialSpec, such as `sweep.trials[0].spec`, or its fields, as in the section `trial` of a sweep file.
        storage: Folder or URI of the storage, such as "runs"; None stores nothing.
        device: Device of torch, such as "cuda".
        num_threads: Number of threads of torch. Workers of a sweep have one for every CPU.
        report: Called with each evaluation.

    Raises:
        SpecError: A field is invalid, or a target cannot be met.
        DivergedError: The loss is not finite.
    """
    from raycap.analysis.stored import read_result
    from raycap.learner.alone import run_alone
    from raycap.plan.expand import resolve

    (point,) = load_tree({"name": "trial", "trial": trial}).points
    try:
        root = Storage.at(storage or SweepSpec.model_fields["storage"].default)  # where `fill` finds its parent
        spec = resolve(point.trial, root)
    except ValueError as error:
        raise SpecError([f"trial: {error}"]) from error
    if storage is not None and root.exists(result_path(spec.trial_id)):
        return read_result(verify_checksum(root.read(result_path(spec.trial_id))))
    return run_alone(spec, root, is_stored=storage is not None, device=device, num_threads=num_threads, report=report)
