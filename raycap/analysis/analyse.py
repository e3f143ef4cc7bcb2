"""Analysis of a sweep as a pure function of its stored records: capacities, laws, verdicts and comparison."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from raycap.analysis.axes import Role, axes_of, format_value, with_role
from raycap.analysis.capacity import TOTAL, capacities
from raycap.analysis.class_laws import ClassLaw, class_laws
from raycap.analysis.contrasts import Contrast, contrasts
from raycap.analysis.curves import (
    IGNORANT_ABOVE,
    Convergence,
    asymptote,
    convergence,
    gain,
)
from raycap.analysis.exclusions import ExclusionReason, exclusion
from raycap.analysis.inspected import Inspected
from raycap.analysis.intervals import NOTHING, Interval
from raycap.analysis.laws import FitStatus, Law, Point, fit_law
from raycap.analysis.measurements import Losses, Measured
from raycap.analysis.pooling import BestSetting, arms_of, best_settings
from raycap.analysis.probes import Readings
from raycap.analysis.readings import Reading, headline, readings
from raycap.analysis.selection import Comparison, Evidence, compare_readings
from raycap.analysis.tables import Tables, joined_blocks, tables
from raycap.results import Failure, RunRecord, SweepRecord
from raycap.spec import AnalysisSpec, Calibration, Kind, Schedule, ScheduleFree

BOOTSTRAP_SEED = 0
RELATIVE_STEP = 1e-4
"""Relative change of all losses in central differences."""


@dataclass(frozen=True)
class ArmLaws:
    """Laws of one arm under each reading."""

    label: str
    trials: frozenset[int]
    """Indices of its trials in the plan."""
    laws: Mapping[Reading, Law]
    asymptote: Interval
    """Bits per parameter under the headline reading, extrapolated to infinitely many exposures; NaN unless all trials of
    the law have an asymptote and a learning rate that does not decay."""


@dataclass(frozen=True)
class Analysis:
    """Results of the analysis of a sweep under its analysis spec.

    Laws and headline numbers are those of each trial's last kind of text.
    """

    sweep: SweepRecord
    run: RunRecord | None
    """Record of the last run; None if it cannot be read."""
    measured: Mapping[str, Measured]
    failures: Mapping[str, Failure]
    unreadable: Mapping[str, str]
    """Reasons why results cannot be analysed, by trial_id."""
    tables: Tables
    training: pd.DataFrame
    """One row per measured trial: trial, convergence, gain, asymptote_bits, asymptote_low, asymptote_high, refused."""
    laws: Mapping[Reading, Law]
    """Laws over all arms. They describe the sweep only if `arms` is empty."""
    asymptote: Interval
    """As in `ArmLaws`, over all arms."""
    arms: tuple[ArmLaws, ...]
    """Laws of each combination of values of the axes that are compared; none if no axis is."""
    best_settings: tuple[BestSetting, ...]
    """Best setting of training per cell under the headline reading; none if the grid varies no setting of training."""
    other_settings: frozenset[int]
    """Indices of the trials whose setting of training is not the best of their cell."""
    comparison: Comparison
    contrasts: tuple[Contrast, ...]
    """Values of each axis of the grid, compared at equal everything else."""
    class_laws: tuple[ClassLaw, ...] = ()
    """Laws of each frequency class and arm under the headline reading; none if all people are equally frequent."""
    inspected: Inspected = field(default_factory=Inspected)
    """Results of analyses of stored models."""

    @property
    def headline(self) -> Reading:
        """Reading that is shown first."""
        return headline(self.sweep.spec.analysis)

    @property
    def law(self) -> Law:
        """Law under the headline reading."""
        return self.laws[self.headline]

    @property
    def kind(self) -> Kind:
        """Last kind of text that any trial was evaluated on; `ONE_HOP` if no trial was."""
        kinds = [measured.losses.kinds[-1] for measured in self.measured.values()]
        return max(kinds, key=list(Kind).index, default=Kind.ONE_HOP)

    @property
    def probes_by_index(self) -> dict[int, Readings]:
        """Return the results of probes by index of the trial in the plan."""
        indices = {trial.trial_id: index for index, trial in enumerate(self.sweep.trials)}
        return {indices[trial_id]: readings for trial_id, readings in self.inspected.probes.items()}

    def totals(self, reading: Reading | None = None, *, final: bool = False) -> pd.DataFrame:
        """Return the headline totals of the capacity table under a reading, at every evaluation or at the last one.

        The reading is the headline reading by default.
        """
        scheme, selection = reading or self.headline
        table = self.tables.capacities
        if table.empty:
            return table
        chosen = table["headline"] & (table["subject"] == TOTAL)
        chosen &= (table["scheme"] == str(scheme)) & (table["selection"] == str(selection))
        return table[chosen & table["final"]] if final else table[chosen]

    def seed_spread_bits(self, reading: Reading | None = None) -> "pd.Series[float]":
        """Return the standard deviation of final learned bits over the seeds of a trial's cell, by index of the trial.

        It is NaN in cells with one measured trial. The reading is the headline reading by default.
        """
        totals = self.totals(reading, final=True)
        if totals.empty:
            return pd.Series(dtype=float)
        learned = totals.set_index("trial")["learned_bits"].astype(float)
        return learned.groupby(self.tables.trials["cell"].loc[learned.index]).transform("std")

    def unexhausted_totals(self) -> pd.DataFrame:
        """Return the final totals under the headline reading of the trials that did not exhaust their data."""
        totals = self.totals(final=True)
        exhausted = self.training["trial"][self.training["convergence"] == Convergence.EXHAUSTED]
        return totals if totals.empty else totals[~totals["trial"].isin(exhausted)]


def analyse(
    sweep: SweepRecord,
    run: RunRecord | None,
    measured: Mapping[str, Measured],
    failures: Mapping[str, Failure],
    unreadable: Mapping[str, str] | None = None,
) -> Analysis:
    """Compute the capacities of every trial, a law per reading, and the comparison of the readings.

    The analysis is a deterministic function of the records and does not depend on the order in which trials finished.

    Args:
        sweep: spec and plan.
        run: record of the last run, or None if it cannot be read.
        measured: results by trial_id.
        failures: failures by trial_id.
        unreadable: reasons why results cannot be analysed, by trial_id.
    """
    spec = sweep.spec.analysis
    indices = {trial.trial_id: index for index, trial in enumerate(sweep.trials)}
    found = {indices[trial_id]: measured[trial_id] for trial_id in sorted(measured, key=indices.__getitem__)}
    frames = tables(sweep.trials, found, spec)
    ordered = {sweep.trials[index].trial_id: result for index, result in found.items()}
    # The next steps read the tables through an Analysis, which is completed by their results at the end.
    no_comparison = Comparison((), {}, 0, 0, 0, {}, {}, {}, (), ())
    draft = Analysis(
        sweep,
        run,
        ordered,
        failures,
        dict(unreadable or {}),
        frames,
        training=pd.DataFrame(),
        laws={},
        asymptote=NOTHING,
        arms=(),
        best_settings=(),
        other_settings=frozenset(),
        comparison=no_comparison,
        contrasts=(),
    )
    draft = replace(draft, training=_training(draft))
    states = dict(zip(draft.training["trial"], map(Convergence, draft.training["convergence"]), strict=True))
    axes = axes_of(sweep)
    totals = draft.totals(final=True)
    learned = dict(zip(totals["trial"], totals["learned_bits"], strict=True)) if len(totals) else {}
    settings, left_out = best_settings(axes, sweep.trials, learned)
    lost = _cell_lost_shares(draft)
    bias = max((setting.log_bias for setting in settings), default=0.0)
    candidates = {reading: _points(draft, reading, states, lost, left_out) for reading in readings(spec)}

    limits = _asymptotes(draft)

    def asymptote_of(members: Collection[int]) -> Interval:
        points, _ = candidates[draft.headline]
        in_law = {index: point for index, point in points.items() if index in members and point.capacity_limited}
        if not in_law or not in_law.keys() <= limits.keys():
            return NOTHING
        extrapolated = [replace(point, learned_bits=limits[index]) for index, point in in_law.items()]
        law = fit_law(extrapolated, {}, rng=np.random.default_rng(BOOTSTRAP_SEED), choice_bias=bias)
        return law.alpha if law.status is FitStatus.OK else NOTHING

    def laws(members: Collection[int]) -> dict[Reading, Law]:
        fits = {}
        for reading, (points, excluded) in candidates.items():
            of_members = [point for index, point in points.items() if index in members]
            reasons = {sweep.trials[index].trial_id: why for index, why in excluded.items() if index in members}
            rng = np.random.default_rng(BOOTSTRAP_SEED)
            fits[reading] = fit_law(of_members, reasons, rng=rng, choice_bias=bias)
        return fits

    arms = arms_of(axes, sweep.trials)
    return replace(
        draft,
        laws=laws(every := range(len(sweep.trials))),
        asymptote=asymptote_of(every),
        arms=tuple(ArmLaws(arm.label, arm.trials, laws(arm.trials), asymptote_of(arm.trials)) for arm in arms),
        best_settings=settings,
        other_settings=left_out,
        comparison=_comparison(draft, joined_blocks(found), states, lost, left_out),
        contrasts=contrasts(axes, sweep.trials, frames, draft.unexhausted_totals(), left_out),
        class_laws=class_laws(
            frames.trials,
            left_out | {index for index, state in states.items() if state is Convergence.DIVERGED},
            frames.classes,
            draft.headline.selection,
            {arm.label: arm.trials for arm in arms} or {"": every},
            BOOTSTRAP_SEED,
        ),
    )


def _training(analysis: Analysis) -> pd.DataFrame:
    """Return the verdict and the asymptote of every measured trial under the headline reading."""
    columns = ["trial", "convergence", "gain", "asymptote_bits", "asymptote_low", "asymptote_high", "refused"]
    rows: list[tuple[Any, ...]] = []
    totals, evaluations = analysis.totals(), analysis.tables.evaluations
    for index, (exposures, learned, lost) in _groups(totals, evaluations):
        limit = asymptote(exposures, learned)
        verdict = convergence(exposures, learned, lost)
        rows.append((index, verdict, gain(exposures, learned), *limit.learned_bits, limit.refused))
    return pd.DataFrame(rows, columns=columns)


def _asymptotes(analysis: Analysis) -> dict[int, float]:
    """Return the asymptotes of learned bits by index of the trial, of trials whose learning rate does not decay.

    A learning rate that decays to zero flattens any curve, so its asymptote says nothing about longer training.
    """
    training = analysis.training[analysis.training["asymptote_bits"] > 0]
    optimizers = {index: analysis.sweep.trials[index].spec.training.optimizer for index in training["trial"]}
    return {
        index: bits
        for index, bits in zip(training["trial"], training["asymptote_bits"], strict=True)
        if isinstance(optimizer := optimizers[index], ScheduleFree) or optimizer.schedule is Schedule.CONSTANT
    }


def _groups(totals: pd.DataFrame, evaluations: pd.DataFrame) -> list[tuple[int, tuple[np.ndarray, ...]]]:
    """Return (exposures, learned bits, lost share) of each trial with its index; both tables have the same order."""
    if totals.empty:
        return []
    trial = evaluations["trial"].to_numpy(dtype=np.int64)
    assert (totals["trial"].to_numpy() == trial).all()
    begins = np.flatnonzero(np.diff(trial, prepend=-1))
    columns = (evaluations["exposures"], totals["learned_bits"], evaluations["lost_share"])
    parts = [np.split(column.to_numpy(dtype=float), begins[1:]) for column in columns]
    return [(int(trial[begin]), values) for begin, *values in zip(begins, *parts, strict=True)]


def _points(
    analysis: Analysis,
    reading: Reading,
    states: Mapping[int, Convergence],
    lost: Mapping[int, float],
    left_out: Collection[int],
) -> tuple[dict[int, Point], dict[int, str]]:
    """Return the data points of laws under one reading, and the reasons of exclusions, by index of the trial.

    Args:
        analysis: analysis with tables and training.
        reading: reading under which bits are counted.
        states: verdicts on convergence.
        lost: lost shares of the trials' cells.
        left_out: trials whose setting of training is not the best.
    """
    finals, trials = analysis.totals(reading, final=True), analysis.tables.trials.to_dict("index")
    compared = with_role(axes_of(analysis.sweep), Role.TREATMENT)
    excluded = {
        index: f"{ExclusionReason.UNREADABLE}: {analysis.unreadable[planned.trial_id]}"
        for index, planned in enumerate(analysis.sweep.trials)
        if planned.trial_id in analysis.unreadable
    }
    points = {}
    rows = zip(finals["trial"], finals["learned_bits"], finals["dataset_bits"], strict=True) if len(finals) else ()
    for index, learned, dataset in rows:
        reason = exclusion(states[index], lost[index], learned)
        if index in left_out:
            reason = ExclusionReason.OTHER_SETTING
        if reason:
            excluded[index] = str(reason)
        if reason in (None, ExclusionReason.EXHAUSTED):
            trial, planned = trials[index], analysis.sweep.trials[index]
            points[index] = Point(
                trial["trial_id"],
                int(trial["cell"]),
                int(trial["num_params"]),
                float(learned),
                float(dataset),
                reason is None,
                {axis.label: format_value(axis.values[axis.index(planned)]) for axis in compared},
            )
    return points, excluded


def _cell_lost_shares(analysis: Analysis) -> dict[int, float]:
    """Return the mean lost share of the answers' entropy at the end over the trial's cell, by index of the trial.

    The mean over the cell is used because trials that differ in nothing but seeds must not be judged differently.
    """
    finals = analysis.tables.evaluations
    finals = finals[finals["final"].astype(bool)]
    cell_of = analysis.tables.trials["cell"]
    means = finals["lost_share"].astype(float).groupby(cell_of.loc[finals["trial"]].to_numpy()).transform("mean")
    return dict(zip(finals["trial"], means, strict=True))


def _comparison(
    analysis: Analysis,
    blocks: Sequence[tuple[pd.DataFrame, Losses]],
    states: Mapping[int, Convergence],
    lost: Mapping[int, float],
    left_out: Collection[int],
) -> Comparison:
    """Compare the readings on the trials with the best settings that are neither exhausted nor diverged nor ignorant.

    These verdicts do not depend on the reading, so all readings are compared on the same trials.
    """
    spec = analysis.sweep.spec.analysis
    excluded = (Convergence.EXHAUSTED, Convergence.DIVERGED)
    usable = (index for index, state in states.items() if state not in excluded and lost[index] <= IGNORANT_ABOVE)
    chosen = np.array(sorted(set(usable) - set(left_out)), dtype=np.int64)
    slopes = _slopes(blocks, spec)
    learned, dataset, chosen_slopes = {}, {}, {}
    for reading in readings(spec):
        finals = analysis.totals(reading, final=True)
        finals = finals.set_index("trial").loc[chosen] if len(finals) else finals
        learned[reading] = finals["learned_bits"].to_numpy(dtype=float)
        dataset[reading] = finals["dataset_bits"].to_numpy(dtype=float) if len(finals) else np.empty(0)
        chosen_slopes[reading] = np.array([slopes[reading][index] for index in chosen])
    trials = analysis.tables.trials.loc[chosen]
    evidence = Evidence(
        trials["num_params"].to_numpy(dtype=float),
        trials["cell"].to_numpy(dtype=np.int64),
        {
            "N": trials["num_profiles"].to_numpy(dtype=float),
            "1 + R": 1.0 + trials["num_relations"].to_numpy(dtype=float),
        },
        learned,
        dataset,
        chosen_slopes,
    )
    log_scale = log_scale_of(spec.calibration)
    return compare_readings(evidence, rng=np.random.default_rng(BOOTSTRAP_SEED), log_scale=log_scale)


def log_scale_of(calibration: Calibration | None) -> tuple[float, float] | None:
    """Return the mean and the standard deviation of log bits per parameter of a calibration."""
    if calibration is None:
        return None
    return float(np.log(calibration.bits_per_param)), calibration.standard_error / calibration.bits_per_param


def _slopes(blocks: Sequence[tuple[pd.DataFrame, Losses]], spec: AnalysisSpec) -> dict[Reading, dict[int, float]]:
    """Return -d learned bits / d log loss at the last evaluation, by reading and index of the trial.

    All losses of a trial are scaled by the same factor. The derivative is a central difference through the whole
    accounting.
    """
    found: dict[Reading, dict[int, float]] = {reading: {} for reading in readings(spec)}
    for evaluations, losses in blocks:
        final = evaluations["final"].to_numpy()
        last, trials = losses[final], evaluations.loc[final, "trial"].tolist()
        less, more = (headline_bits(last.scaled(1 + sign * RELATIVE_STEP), spec) for sign in (-1, 1))
        for reading in found:
            slopes = (less[reading] - more[reading]) / (2 * RELATIVE_STEP)
            found[reading] |= dict(zip(trials, slopes.tolist(), strict=True))
    return found


def headline_bits(losses: Losses, spec: AnalysisSpec) -> dict[Reading, np.ndarray]:
    """Return the total learned bits of the headline kind under every reading, each (E,)."""
    return {
        capacity.reading: capacity.learned_bits
        for capacity in capacities(losses, spec)
        if capacity.subject == TOTAL and capacity.is_headline(losses, spec)
    }
