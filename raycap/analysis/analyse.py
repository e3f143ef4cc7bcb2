"""The whole analysis of a sweep as one pure function of what is stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd

from raycap.analysis.capacity import TOTAL, capacities
from raycap.analysis.curves import IGNORANT_ABOVE, Convergence, asymptote, convergence, gain
from raycap.analysis.laws import Law, Point, fit_law
from raycap.analysis.measurements import Losses, Measured
from raycap.analysis.readings import Reading, headline, readings
from raycap.analysis.selection import Comparison, Evidence, compare
from raycap.analysis.tables import ARMS, Tables, joined, tables
from raycap.results import Failure, RunRecord, SweepRecord
from raycap.spec import AnalysisSpec, Calibration, Kind

BOOTSTRAP_SEED = 0
NUDGE = 1e-4


class ExclusionReason(StrEnum):
    """Why a trial does not enter a law."""

    EXHAUSTED = "dataset exhausted"
    """Hardly any loss is left: the model could have stored more than there was. The power law bends there, and keeps it."""
    NOTHING_LEARNED = "nothing learned"
    """It loses 95 % of what a model loses that knows the names alone; what those are worth, no loss has measured."""
    DIVERGED = "diverged"
    """It ended up knowing clearly less than it once did."""
    UNREADABLE = "unreadable"
    """Its result cannot be analysed; what follows says why."""


@dataclass(frozen=True)
class Analysis:
    """A sweep read under its analysis spec. Laws and headline numbers are of each trial's last kind of text."""

    sweep: SweepRecord
    run: RunRecord
    measured: Mapping[str, Measured]
    failures: Mapping[str, Failure]
    unreadable: Mapping[str, str]
    """Why results cannot be analysed, by trial_id."""
    tables: Tables
    training: pd.DataFrame
    """One row a measured trial: trial, convergence, gain, asymptote_bits with asymptote_low and asymptote_high, refused."""
    laws: Mapping[Reading, Law]
    comparison: Comparison

    @property
    def headline(self) -> Reading:
        """The reading shown first."""
        return headline(self.sweep.spec.analysis)

    @property
    def law(self) -> Law:
        """The law of the headline reading."""
        return self.laws[self.headline]

    @property
    def kind(self) -> Kind:
        """The last kind of text that any trial was evaluated on; one-hop questions while there is none."""
        kinds = [one.losses.kinds[-1] for one in self.measured.values()]
        return max(kinds, key=list(Kind).index, default=Kind.ONE_HOP)

    def totals(self, reading: Reading | None = None, *, final: bool = False) -> pd.DataFrame:
        """The capacity table's headline totals under a reading (the headline), at every evaluation or at the last."""
        scheme, selection = reading or self.headline
        table = self.tables.capacities
        if table.empty:
            return table
        chosen = table["headline"] & (table["subject"] == TOTAL)
        chosen &= (table["scheme"] == str(scheme)) & (table["selection"] == str(selection))
        return table[chosen & table["final"]] if final else table[chosen]


def analyse(
    sweep: SweepRecord,
    run: RunRecord,
    measured: Mapping[str, Measured],
    failures: Mapping[str, Failure],
    unreadable: Mapping[str, str] | None = None,
) -> Analysis:
    """Capacities of every trial, a law per reading, and a comparison of the readings.

    The same records give the same analysis, in whatever order trials finished. `unreadable` says why results of some
    trials are not among `measured`.
    """
    spec = sweep.spec.analysis
    places = {trial.trial_id: place for place, trial in enumerate(sweep.trials)}
    found = {places[trial_id]: measured[trial_id] for trial_id in sorted(measured, key=places.__getitem__)}
    made = tables(sweep.trials, found, spec)
    ordered = {sweep.trials[place].trial_id: one for place, one in found.items()}
    blank = Comparison((), {}, 0, 0, 0, {}, {}, {}, (), ())
    draft = Analysis(sweep, run, ordered, failures, dict(unreadable or {}), made, pd.DataFrame(), {}, blank)
    training = _training(draft)
    states = dict(zip(training["trial"], map(Convergence, training["convergence"]), strict=True))
    laws = {reading: _law(draft, reading, states) for reading in readings(spec)}
    comparison = _comparison(draft, joined(found), states, spec)
    return Analysis(sweep, run, ordered, failures, draft.unreadable, made, training, laws, comparison)


def _training(analysis: Analysis) -> pd.DataFrame:
    """Verdict and asymptote of every trial, under the headline reading."""
    columns = ["trial", "convergence", "gain", "asymptote_bits", "asymptote_low", "asymptote_high", "refused"]
    rows: list[tuple[Any, ...]] = []
    totals, evaluations = analysis.totals(), analysis.tables.evaluations
    for place, of_trial in _groups(totals, evaluations):
        exposures, learned, lost = of_trial
        tends = asymptote(exposures, learned)
        verdict = convergence(exposures, learned, lost)
        rows.append((place, verdict, gain(exposures, learned), *tends.learned_bits, tends.refused))
    return pd.DataFrame(rows, columns=columns)


def _groups(totals: pd.DataFrame, evaluations: pd.DataFrame) -> list[tuple[int, tuple[np.ndarray, ...]]]:
    """(exposures, learned bits, lost share) of each trial, by its place; both tables are in the same order."""
    if totals.empty:
        return []
    trial = evaluations["trial"].to_numpy(dtype=np.int64)
    assert (totals["trial"].to_numpy() == trial).all()
    begins = np.flatnonzero(np.diff(trial, prepend=-1))
    columns = (evaluations["exposures"], totals["learned_bits"], evaluations["lost_share"])
    parts = [np.split(column.to_numpy(dtype=float), begins[1:]) for column in columns]
    return [(int(trial[begin]), values) for begin, *values in zip(begins, *parts, strict=True)]


def _law(analysis: Analysis, reading: Reading, states: dict[int, Convergence]) -> Law:
    finals, trials = analysis.totals(reading, final=True), analysis.tables.trials.to_dict("index")
    evaluations = analysis.tables.evaluations
    lost = dict(zip(evaluations["trial"], evaluations["lost_share"], strict=True))  # the last of each stays
    excluded = {trial_id: f"{ExclusionReason.UNREADABLE}: {why}" for trial_id, why in analysis.unreadable.items()}
    points = []
    rows = zip(finals["trial"], finals["learned_bits"], finals["dataset_bits"], strict=True) if len(finals) else ()
    for place, learned, dataset in rows:
        reason = _exclusion(states[place], lost[place], learned)
        trial = trials[place]
        if reason:
            excluded[trial["trial_id"]] = str(reason)
        if reason in (None, ExclusionReason.EXHAUSTED):
            points.append(
                Point(
                    trial["trial_id"],
                    int(trial["cell"]),
                    int(trial["num_params"]),
                    float(learned),
                    float(dataset),
                    reason is None,
                    {name: trial[name] for name in ARMS},
                )
            )
    return fit_law(points, excluded, rng=np.random.default_rng(BOOTSTRAP_SEED))


def _exclusion(state: Convergence, lost: float, learned_bits: float) -> ExclusionReason | None:
    if state is Convergence.DIVERGED:
        return ExclusionReason.DIVERGED
    if lost > IGNORANT_ABOVE or learned_bits <= 0:
        return ExclusionReason.NOTHING_LEARNED
    return ExclusionReason.EXHAUSTED if state is Convergence.EXHAUSTED else None


def _comparison(
    analysis: Analysis,
    blocks: Sequence[tuple[pd.DataFrame, Losses]],
    states: dict[int, Convergence],
    spec: AnalysisSpec,
) -> Comparison:
    """Of the trials that are neither exhausted nor diverged nor ignorant, whatever the reading."""
    evaluations = analysis.tables.evaluations
    lost = dict(zip(evaluations["trial"], evaluations["lost_share"], strict=True))
    barred = (Convergence.EXHAUSTED, Convergence.DIVERGED)
    able = (place for place, state in states.items() if state not in barred and lost[place] <= IGNORANT_ABOVE)
    chosen = np.array(sorted(able), dtype=np.int64)
    slopes = _slopes(blocks, spec)
    learned, dataset, moved = {}, {}, {}
    for reading in readings(spec):
        finals = analysis.totals(reading, final=True)
        finals = finals.set_index("trial").loc[chosen] if len(finals) else finals
        learned[reading] = finals["learned_bits"].to_numpy(dtype=float)
        dataset[reading] = finals["dataset_bits"].to_numpy(dtype=float) if len(finals) else np.empty(0)
        moved[reading] = np.array([slopes[reading][place] for place in chosen])
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
        moved,
    )
    log_scale = log_scale_of(spec.calibration)
    return compare(evidence, rng=np.random.default_rng(BOOTSTRAP_SEED), log_scale=log_scale)


def log_scale_of(calibration: Calibration | None) -> tuple[float, float] | None:
    """Mean and standard deviation of log bits per parameter that a calibration tells."""
    if calibration is None:
        return None
    return float(np.log(calibration.bits_per_param)), calibration.standard_error / calibration.bits_per_param


def _slopes(blocks: Sequence[tuple[pd.DataFrame, Losses]], spec: AnalysisSpec) -> dict[Reading, dict[int, float]]:
    """Bits not learned for a change of all losses by a factor e, at the last evaluation, by reading and place."""
    found: dict[Reading, dict[int, float]] = {reading: {} for reading in readings(spec)}
    for evaluations, losses in blocks:
        final = evaluations["final"].to_numpy()
        last, places = losses[final], evaluations.loc[final, "trial"].tolist()
        less, more = (headline_bits(last.scaled(1 + sign * NUDGE), spec) for sign in (-1, 1))
        for reading in found:
            steps = (less[reading] - more[reading]) / (2 * NUDGE)
            found[reading] |= dict(zip(places, steps.tolist(), strict=True))
    return found


def headline_bits(losses: Losses, spec: AnalysisSpec) -> dict[Reading, np.ndarray]:
    """Total learned bits of the headline kind under every reading, (E,)."""
    return {
        capacity.reading: capacity.learned_bits
        for capacity in capacities(losses, spec)
        if capacity.subject == TOTAL and capacity.is_headline(losses, spec)
    }
