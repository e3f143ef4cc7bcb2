"""Tidy data frames of an analysis, one row per observation, which notebooks, files and the interactive page share.

Every frame of trials has a column per axis of the grid, named by its dotted path in the spec.
"""

import numpy as np
import pandas as pd

from raycap.analysis.analyse import Analysis
from raycap.analysis.localisation import localisation_rows
from raycap.analysis.model_evaluations import composition_rows, evaluation_rows
from raycap.analysis.probes import interchange_rows, probe_rows
from raycap.analysis.readings import Reading
from raycap.analysis.summary import contrast_entry, law_entry, state
from raycap.analysis.tables import grid_columns, joined_blocks
from raycap.spec import Kind

FIRST = ["trial_id", "label", "state", "scheme", "selection"]
BITS = ["dataset_bits", "learned_bits", "standard_error_bits", "bits_per_param", "bits_per_non_embedding_param"]
LAW_COLUMNS = ["alpha", "low", "high", "gamma", "gamma_low", "gamma_high", "noise", "num_trials", "num_cells", "status"]
"""Columns of `law_frame`, named as in a law's entry in summary.json."""
LOSS_COLUMNS = ["kind", "subject", "part", "split", "population", "frequency_class"]
"""Fields of a row of losses in a trial's result, in the order of its key."""
LOSS_NUMBERS = ["loss_bits", "standard_error_bits", "num_evaluated", "num_texts"]


def trial_frame(analysis: Analysis) -> pd.DataFrame:
    """Return one row per planned trial and reading; see `raycap.analysis.frames.Results.trials`."""
    table = analysis.tables.trials
    verdicts = analysis.training.astype({"trial": int}).set_index("trial")["convergence"].map(str)
    parts = [grid_columns(analysis.sweep.trials), table.drop(columns="finished"), verdicts]
    every = pd.concat(parts, axis=1).rename_axis("trial").reset_index()
    every.insert(0, "state", [state(analysis, trial_id) for trial_id in every["trial_id"]])
    frames = []
    for reading, law in analysis.laws.items():
        frame = _with_bits(analysis, every, reading, ["trial"], final=True)
        spread = frame["trial"].map(analysis.seed_spread_bits(reading)).astype(float)
        frame = frame.assign(
            seed_spread_bits=spread, seed_spread_bits_per_param=spread / frame["num_params"].astype(float)
        )
        frames.append(frame.assign(excluded=[law.excluded.get(trial_id) for trial_id in frame["trial_id"]]))
    return _ordered(frames, ["trial"])


def evaluation_frame(analysis: Analysis) -> pd.DataFrame:
    """Return one row per evaluation and reading; see `raycap.analysis.frames.Results.evaluations`."""
    every = _named(analysis, analysis.tables.evaluations.astype({"trial": int, "step": int}))
    frames = [_with_bits(analysis, every, reading, ["trial", "step"]) for reading in analysis.laws]
    return _ordered(frames, ["trial", "step"])


def loss_frame(analysis: Analysis) -> pd.DataFrame:
    """Return one row per evaluation and row of losses; see `raycap.analysis.frames.Results.losses`."""
    indices = {trial.trial_id: index for index, trial in enumerate(analysis.sweep.trials)}
    blocks = joined_blocks({indices[trial_id]: measured for trial_id, measured in analysis.measured.items()})
    frames = []
    for evaluations, losses in blocks:
        keys, num_texts = losses.questions.keys, losses.questions.num_texts
        repeated = evaluations.index.repeat(len(keys))
        frame = evaluations.loc[repeated, ["trial", "step", "exposures", "final"]].reset_index(drop=True)
        for name, values in zip(LOSS_COLUMNS, zip(*keys, strict=True), strict=True):
            texts = [value if isinstance(value, int) else str(value) for value in values]
            frame[name] = np.tile(np.array(texts), len(evaluations))
        columns = range(len(keys))
        means = np.stack([losses.mean_bits([column]) for column in columns], axis=1)
        errors = np.stack([losses.standard_error_bits([column]) for column in columns], axis=1)
        counts = np.tile(np.array(num_texts), len(evaluations))
        for name, numbers in zip(LOSS_NUMBERS, (means, errors, losses.num_evaluated, counts), strict=True):
            frame[name] = numbers.ravel()
        frames.append(frame)
    empty = pd.DataFrame(columns=["trial", "step", "exposures", "final", *LOSS_COLUMNS, *LOSS_NUMBERS])
    rows = pd.concat(frames, ignore_index=True) if frames else empty
    return _ordered([_named(analysis, rows)], ["trial", "step"])


def generalisation_frame(analysis: Analysis) -> pd.DataFrame:
    """Return the generalisation matrix of every trial; see `raycap.analysis.frames.Results.generalisation`."""
    table = analysis.tables.splits
    index = ["trial", "population", "part", "split"]
    if table.empty:
        rows = pd.DataFrame(columns=index)
    else:
        rows = table.pivot(index=index, columns="kind", values="loss_bits")
        rows = rows[[str(kind) for kind in Kind if str(kind) in rows]].rename_axis(columns=None)
        order = table.drop_duplicates(index)[index]  # splits in the order of their definition, not of the alphabet
        rows = order.merge(rows, left_on=index, right_index=True)
    return _ordered([_named(analysis, rows)], ["trial"])


def class_frame(analysis: Analysis) -> pd.DataFrame:
    """Return one row per evaluation, selection and frequency class; see `raycap.analysis.frames.Results.frequencies`."""
    return _ordered([_named(analysis, analysis.tables.classes)], ["trial", "step"])


def law_frame(analysis: Analysis) -> pd.DataFrame:
    """Return one row per arm and reading; see `raycap.analysis.frames.Results.laws`."""
    groups = [(arm.label, arm.laws) for arm in analysis.arms] or [("", analysis.laws)]
    rows = []
    for arm, laws in groups:
        for reading, law in laws.items():
            entry = law_entry(law)
            names = {"arm": arm, "scheme": str(reading.scheme), "selection": str(reading.selection)}
            rows.append(names | {name: entry[name] for name in LAW_COLUMNS})
    return pd.DataFrame(rows)


def contrast_frame(analysis: Analysis) -> pd.DataFrame:
    """Return one row per axis, outcome and value; see `raycap.analysis.frames.Results.contrasts`."""
    return pd.DataFrame(map(contrast_entry, analysis.contrasts))


def model_evaluation_frame(analysis: Analysis) -> pd.DataFrame:
    """Return one row per evaluated model and form of its weights; see `Results.model_evaluations`."""
    sweep = analysis.sweep
    rows = evaluation_rows(sweep.trials, analysis.inspected.evaluations, sweep.spec.analysis)
    return _ordered([_named(analysis, rows)], ["trial", "step"])


def composition_frame(analysis: Analysis) -> pd.DataFrame:
    """Return one row per model whose questions were analysed; see `raycap.analysis.frames.Results.compositions`."""
    rows = composition_rows(analysis.sweep.trials, analysis.inspected.compositions)
    return _ordered([_named(analysis, rows)], ["trial", "step"])


def probe_frame(analysis: Analysis) -> pd.DataFrame:
    """Return one row per probed model and reading; see `raycap.analysis.frames.Results.probes`."""
    return _ordered([_named(analysis, probe_rows(analysis.probes_by_index))], ["trial", "step"])


def interchange_frame(analysis: Analysis) -> pd.DataFrame:
    """Return one row per probed model and interchange; see `raycap.analysis.frames.Results.interchanges`."""
    return _ordered([_named(analysis, interchange_rows(analysis.probes_by_index))], ["trial", "step"])


def localisation_frame(analysis: Analysis) -> pd.DataFrame:
    """Return one row per ablated model, part and layer; see `raycap.analysis.frames.Results.localisation`."""
    sweep = analysis.sweep
    rows = localisation_rows(sweep.trials, analysis.inspected.localisations, sweep.spec.analysis)
    return _ordered([_named(analysis, rows)], ["trial", "step"])


def capacity_rows(analysis: Analysis) -> pd.DataFrame:
    """Return the table of capacities with the axes of the grid after the identity of the trial."""
    table = analysis.tables.capacities
    grid = grid_columns(analysis.sweep.trials)
    rows = grid.iloc[table["trial"].to_numpy(dtype=int)].set_axis(table.index)
    names = ["trial", "trial_id"]
    return pd.concat([table[names], rows, table.drop(columns=names)], axis=1)


def _named(analysis: Analysis, rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of trials with their ids, labels and the axes of the grid in front."""
    names = pd.concat([analysis.tables.trials[["trial_id", "label"]], grid_columns(analysis.sweep.trials)], axis=1)
    return names.rename_axis("trial").reset_index().merge(rows.astype({"trial": int}), on="trial")


def _with_bits(
    analysis: Analysis, rows: pd.DataFrame, reading: Reading, keys: list[str], *, final: bool = False
) -> pd.DataFrame:
    """Return rows of trials or evaluations with the columns of bits under a reading."""
    totals = analysis.totals(reading, final=final).reindex(columns=[*keys, *BITS, "num_params"])
    totals = totals.astype(dict.fromkeys(keys, int) | dict.fromkeys([*BITS, "num_params"], float))
    totals["standard_error_bits_per_param"] = totals["standard_error_bits"] / totals.pop("num_params")
    named = rows.assign(scheme=str(reading.scheme), selection=str(reading.selection))
    return named.merge(totals, on=keys, how="left")


def _ordered(frames: list[pd.DataFrame], keys: list[str]) -> pd.DataFrame:
    """Concatenate frames, sort them by trial, and put the identifying columns first."""
    frame = pd.concat(frames).sort_values(keys, kind="stable", ignore_index=True).drop(columns="trial")
    first = [name for name in FIRST if name in frame]
    return frame[[*first, *frame.columns.difference(first, sort=False)]]
