"""Access to a sweep from notebooks: its results as tidy data frames, and its figures."""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from raycap.analysis.analyse import Analysis
from raycap.analysis.figures.all import FIGURES
from raycap.analysis.readings import Reading
from raycap.analysis.report import answer
from raycap.analysis.stored import analyse_stored
from raycap.analysis.summary import law_entry, state
from raycap.storage.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIRST = ["trial_id", "label", "state", "scheme", "selection"]
BITS = ["dataset_bits", "learned_bits", "standard_error_bits", "bits_per_param", "bits_per_non_embedding_param"]
LAW_COLUMNS = ["alpha", "low", "high", "gamma", "gamma_low", "gamma_high", "noise", "num_trials", "num_cells", "status"]
"""Columns of `Sweep.laws`, named as in a law's entry in summary.json."""


@dataclass(frozen=True)
class Sweep:
    """A sweep that has run. Bits are those of each trial's last kind of text."""

    analysis: Analysis
    """The whole analysis, from which the report is made."""

    @classmethod
    def at(cls, folder: str | os.PathLike[str]) -> "Sweep":
        """Read and analyse a sweep, which takes seconds for thousands of trials. See `raycap.load`."""
        opened = SweepFolder.at(os.fspath(folder))
        record = opened.read_sweep()
        # The folder may have been renamed or copied since the record was written.
        spec = record.spec.model_copy(update={"name": opened.name})
        return cls(analyse_stored(record.model_copy(update={"spec": spec}), opened.storage))

    @property
    def name(self) -> str:
        """Name of the sweep."""
        return self.analysis.sweep.spec.name

    @property
    def answer(self) -> str:
        """Main result of the sweep in one or two sentences."""
        return answer(self.analysis)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """Data frame with one row per planned trial and reading.

        Columns: trial_id, label, state, scheme, selection, the values of the grid by dotted path (sections, lists and
        null as JSON, so that they can be grouped by), sizes, arms and verdicts, dataset_bits (the code length),
        learned_bits and bits_per_param with standard errors at the last evaluation, and excluded, the reason why the
        trial does not enter the proportional law. Values that were not measured are NaN.
        """
        analysis = self.analysis
        table = analysis.tables.trials
        points = [{path: _hashable(v) for path, v in trial.coordinates.items()} for trial in analysis.sweep.trials]
        coordinates = pd.DataFrame(points, index=table.index)
        verdicts = analysis.training.astype({"trial": int}).set_index("trial")["convergence"].map(str)
        every = (
            pd.concat([coordinates, table.drop(columns="finished"), verdicts], axis=1)
            .rename_axis("trial")
            .reset_index()
        )
        every.insert(0, "state", [state(analysis, trial_id) for trial_id in every["trial_id"]])
        frames = []
        for reading, law in analysis.laws.items():
            frame = self._with_bits(every, reading, ["trial"], final=True)
            frames.append(frame.assign(excluded=[law.excluded.get(trial_id) for trial_id in frame["trial_id"]]))
        return _ordered(frames, ["trial"])

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """Data frame with one row per evaluation and reading.

        Columns: trial_id, label, scheme, selection, step, exposures, tokens, learning_rate, train_loss_bits (mean per
        text), train_seconds, and the same bits as in `trials`.
        """
        every = self.analysis.tables.evaluations.astype({"trial": int, "step": int})
        names = self.analysis.tables.trials[["trial_id", "label"]]
        every = names.merge(every, left_index=True, right_on="trial")
        frames = [self._with_bits(every, reading, ["trial", "step"]) for reading in self.analysis.laws]
        return _ordered(frames, ["trial", "step"])

    @cached_property
    def laws(self) -> pd.DataFrame:
        """Data frame with one row per reading.

        Columns: scheme, selection, bits per parameter alpha with its 95 % interval [low, high], the exponent gamma of the
        power law with its interval, noise, num_trials, num_cells and status. Numbers that no law gives are NaN.
        """
        entries = [(reading, law_entry(law)) for reading, law in self.analysis.laws.items()]
        return pd.DataFrame(
            {"scheme": str(reading.scheme), "selection": str(reading.selection)}
            | {name: law[name] for name in LAW_COLUMNS}
            for reading, law in entries
        )

    def figure(self, name: str = "capacity") -> "Figure":
        """Draw a figure of the report.

        Raises:
            ValueError: if no figure has this name, or if the sweep does not vary what the figure shows.
        """
        if name not in FIGURES:
            raise ValueError(f"unknown figure {name!r}; the figures are {', '.join(FIGURES)}")
        drawn = FIGURES[name](self.analysis)
        if drawn is None:
            raise ValueError(
                f"figure {name!r} is empty for {self.name}: the sweep does not vary what it shows; report.html has the "
                "figures that are not empty"
            )
        return drawn

    def __repr__(self) -> str:
        finished, planned = len(self.analysis.measured), len(self.analysis.sweep.trials)
        return f"<sweep {self.name}: {finished} of {planned} trials finished. {self.answer}>"

    def _with_bits(self, rows: pd.DataFrame, reading: Reading, keys: list[str], *, final: bool = False) -> pd.DataFrame:
        """Return rows of trials or evaluations with the columns of bits under a reading."""
        totals = self.analysis.totals(reading, final=final).reindex(columns=[*keys, *BITS, "num_params"])
        totals = totals.astype(dict.fromkeys(keys, int) | dict.fromkeys([*BITS, "num_params"], float))
        totals["standard_error_bits_per_param"] = totals["standard_error_bits"] / totals.pop("num_params")
        named = rows.assign(scheme=str(reading.scheme), selection=str(reading.selection))
        return named.merge(totals, on=keys, how="left")


def _hashable(value: Any) -> Any:
    """Return a value of the grid that a frame can be grouped by; groups of pandas leave out None."""
    return json.dumps(value) if value is None or isinstance(value, dict | list) else value


def _ordered(frames: list[pd.DataFrame], keys: list[str]) -> pd.DataFrame:
    """Concatenate frames of readings, sort them by trial, and put the identifying columns first."""
    frame = pd.concat(frames).sort_values(keys, kind="stable", ignore_index=True).drop(columns="trial")
    first = [name for name in FIRST if name in frame]
    return frame[[*first, *frame.columns.difference(first, sort=False)]]
