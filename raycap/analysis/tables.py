"""Data frames of trials, evaluations, losses, splits and capacities, which figures, tables and files are made from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from raycap.analysis.capacity import TOTAL, Capacity, capacities, lost_share, uniform_bits
from raycap.analysis.frequency import class_frame
from raycap.analysis.measurements import Curve, Ints, Losses, Measured, QuestionSet, cells
from raycap.results import Part, PlannedTrial
from raycap.spec import AnalysisSpec, Kind, ModelByWidth, ResolvedModel, Split


@dataclass(frozen=True)
class Tables:
    """Data frames of a sweep. Rows are sorted by trial and step. `trial` is the index of the trial in the plan."""

    trials: pd.DataFrame
    """One row per planned trial: trial_id, label, cell, sizes, factors and arms, and measured columns, which are NaN for
    trials that have not finished."""
    evaluations: pd.DataFrame
    """One row per evaluation: trial, the fields of `Curve`, lost_share, final."""
    losses: pd.DataFrame
    """Mean losses by trial, step, population, kind and part: loss_bits of trained texts, held_out_bits of held-out
    questions (NaN if there are none), with exposures and final."""
    subjects: pd.DataFrame
    """Final mean losses by trial, population, kind and subject, and uniform_bits, the loss of uniform guesses."""
    split_losses: pd.DataFrame
    """Mean losses by trial, step, population, part, split and kind, with exposures and final."""
    capacities: pd.DataFrame
    """Totals at every evaluation, subjects and names at the last one. See `capacity_frame`."""
    classes: pd.DataFrame
    """Bits by trial, step, selection, population and frequency class; see `raycap.analysis.frequency.class_frame`."""
    histograms: dict[Kind, Ints]
    """Number of trained texts of each kind by loss at the last evaluation, (trials, bins)."""

    @property
    def splits(self) -> pd.DataFrame:
        """Final mean losses by trial, population, part, split and kind: the generalisation matrix."""
        return self.split_losses[self.split_losses["final"].astype(bool)]


Block = tuple[pd.DataFrame, Losses]
"""Data frame of evaluations, with the index of their trial, and their losses, in the same order."""


def tables(trials: Sequence[PlannedTrial], found: Mapping[int, Measured], analysis: AnalysisSpec) -> Tables:
    """Return the tables of a plan and its measured trials, which are keyed by their index in the plan."""
    blocks = joined_blocks(found)
    frame = _trials(trials, found)
    evaluations = _evaluations(blocks)
    return Tables(
        frame,
        evaluations,
        _in_order(pd.concat([_losses(*block) for block in blocks]) if blocks else _empty("trial step kind part final")),
        _in_order(pd.concat([_subjects(*block) for block in blocks]) if blocks else _empty("trial kind")),
        _in_order(pd.concat([_splits(*block) for block in blocks]) if blocks else _empty("trial step kind final")),
        capacity_frame(blocks, frame, analysis),
        class_frame(blocks, analysis),
        _histograms(found, len(trials)),
    )


def _empty(columns: str) -> pd.DataFrame:
    return pd.DataFrame(columns=columns.split())


def joined_blocks(found: Mapping[int, Measured]) -> list[Block]:
    """Concatenate the evaluations of trials with the same question set, so that capacities are computed in few calls."""
    groups: dict[QuestionSet, list[int]] = {}
    for index in sorted(found):
        groups.setdefault(found[index].losses.questions, []).append(index)
    blocks = []
    for members in groups.values():
        lengths = [len(found[index].curve.step) for index in members]
        columns: dict[str, Any] = {"trial": np.repeat(members, lengths)}
        for name in Curve._fields:
            columns[name] = np.concatenate([getattr(found[index].curve, name) for index in members])
        ends = np.cumsum(lengths) - 1
        columns["final"] = np.isin(np.arange(sum(lengths)), ends)
        blocks.append((pd.DataFrame(columns), Losses.joined([found[index].losses for index in members])))
    return blocks


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    by = [name for name in ("trial", "step") if name in frame]
    return frame.sort_values(by, kind="stable", ignore_index=True)


def _trials(trials: Sequence[PlannedTrial], found: Mapping[int, Measured]) -> pd.DataFrame:
    cell_of = cells(trials)
    rows = []
    for index, trial in enumerate(trials):
        row = {
            "trial_id": trial.trial_id,
            "label": trial.label,
            "cell": cell_of[trial.trial_id],
            "num_params": trial.parameters.total,
            "num_non_embedding_params": trial.parameters.non_embedding,
            "num_active_params": trial.parameters.active,
            **factors(trial),
        }
        measured = found.get(index)
        if measured:
            final = {name: getattr(measured.curve, name)[-1] for name in ("exposures", "tokens", "train_seconds")}
            row |= {
                "finished": True,
                **final,
                "parameter_norm": measured.curve.parameter_norm[-1],
                "device_seconds": final["train_seconds"] * measured.num_workers,
                "stop_reason": str(measured.stop_reason),
            }
        rows.append({"finished": False} | row)
    return pd.DataFrame(rows)


def factors(trial: PlannedTrial) -> dict[str, Any]:
    """Return the numbers that sweeps usually vary."""
    questions = trial.spec.questions
    shares = dict(zip(questions.kinds, questions.shares, strict=True))
    model = trial.spec.model
    assert isinstance(model, ResolvedModel)
    return {
        "num_profiles": sum(population.num_profiles for population in trial.populations),
        "num_relations": len(trial.populations[0].relations),
        "hidden_size": model.hidden_size,
        "learning_rate": trial.spec.training.optimizer.lr,
        "one_hop_share": shares.get(Kind.ONE_HOP, 0.0),
        "parametrization": model.parametrization.kind if isinstance(model, ModelByWidth) else "standard",
        "seed": trial.spec.training.seed,
    }


def grid_columns(trials: Sequence[PlannedTrial]) -> pd.DataFrame:
    """Return the values of the grid's axes: one row per planned trial, one column per dotted path in the spec.

    Sections, lists and null are JSON text, so that rows can be grouped by them. So is every value of an axis whose values
    are neither all numbers nor all text.
    """
    paths = dict.fromkeys(path for trial in trials for path in trial.coordinates)
    columns = {path: _of_one_type([trial.coordinates.get(path) for trial in trials]) for path in paths}
    return pd.DataFrame(columns, index=pd.RangeIndex(len(trials), name="trial"))


def _of_one_type(values: list[Any]) -> list[Any]:
    for types in ((bool,), (int, float), (str,)):
        if all(type(value) in types for value in values):
            return values
    return [value if isinstance(value, str) else json.dumps(value) for value in values]


def _evaluations(blocks: list[Block]) -> pd.DataFrame:
    frames = [evaluations.assign(lost_share=lost_share(losses)) for evaluations, losses in blocks]
    return _in_order(pd.concat(frames)) if frames else _empty("trial step exposures final lost_share")


def _losses(evaluations: pd.DataFrame, losses: Losses) -> pd.DataFrame:
    frames = []
    index = evaluations[["trial", "step", "exposures", "final"]]
    for number in range(len(losses.populations)):
        for kind in losses.kinds:
            for part in Part:
                trained = losses.columns(kind, population=number, part=part)
                if not trained:
                    continue
                held_out = [
                    column
                    for split in Split
                    if split is not Split.TRAIN
                    for column in losses.columns(kind, population=number, part=part, split=split)
                ]
                bits = losses.mean_bits(held_out) if held_out and kind.hops > 1 else np.nan
                frames.append(
                    index.assign(
                        population=number,
                        kind=str(kind),
                        part=str(part),
                        loss_bits=losses.mean_bits(trained),
                        held_out_bits=bits,
                    )
                )
    return pd.concat(frames)


def _subjects(evaluations: pd.DataFrame, losses: Losses) -> pd.DataFrame:
    final = evaluations["final"].to_numpy()
    last, index = losses[final], evaluations.loc[final, ["trial"]]
    return pd.concat(
        index.assign(
            population=number,
            kind=str(kind),
            subject=subject,
            loss_bits=last.mean_bits(last.columns(kind, population=number, subject=subject)),
            uniform_bits=uniform_bits(losses.populations[number])[subject],
        )
        for number in range(len(losses.populations))
        for kind in losses.kinds
        for subject in losses.subjects(kind, number)
    )


def _splits(evaluations: pd.DataFrame, losses: Losses) -> pd.DataFrame:
    index = evaluations[["trial", "step", "exposures", "final"]]
    frames = []
    for number in range(len(losses.populations)):
        for part in Part:
            for split in Split:
                for kind in losses.kinds:
                    columns = losses.columns(kind, population=number, part=part, split=split)
                    if columns:
                        frames.append(
                            index.assign(
                                population=number,
                                part=str(part),
                                split=str(split),
                                kind=str(kind),
                                loss_bits=losses.mean_bits(columns),
                            )
                        )
    return pd.concat(frames)


def _histograms(found: Mapping[int, Measured], num_trials: int) -> dict[Kind, Ints]:
    """Return histograms (trials, bins), summed over the trained rows of each kind."""
    totals: dict[Kind, Ints] = {}
    for index, measured in found.items():
        for kind in measured.losses.kinds:
            columns = measured.losses.columns(kind, population=None)
            total = totals.setdefault(kind, np.zeros((num_trials, measured.histograms.shape[1]), np.int64))
            total[index] = measured.histograms[columns].sum(0)
    return totals


def capacity_frame(blocks: list[Block], trials: pd.DataFrame, analysis: AnalysisSpec) -> pd.DataFrame:
    """Return the capacities of all evaluations as a data frame.

    Columns: trial, trial_id, step, exposures, kind, scheme, selection, incremental, population, subject, dataset_bits,
    baseline_bits, learned_bits, standard_error_bits, num_params, num_non_embedding_params, bits_per_param,
    bits_per_non_embedding_param, headline (see `Capacity.is_headline`), final.
    """
    frames = []
    for evaluations, losses in blocks:
        for capacity in capacities(losses, analysis):
            rows = evaluations if capacity.subject == TOTAL else evaluations[evaluations["final"]]
            frames.append(_capacity_rows(capacity, rows, analysis, losses))
    if not frames:
        return _empty("trial trial_id step exposures subject scheme selection headline final num_params learned_bits")
    frame = _in_order(pd.concat(frames, ignore_index=True))
    trial = frame["trial"].to_numpy()
    for name in ("num_params", "num_non_embedding_params"):
        frame[name] = trials[name].to_numpy()[trial]
    frame["bits_per_param"] = frame["learned_bits"] / frame["num_params"]
    frame["bits_per_non_embedding_param"] = frame["learned_bits"] / frame["num_non_embedding_params"]
    frame.insert(1, "trial_id", pd.Series(pd.Categorical.from_codes(trial, pd.Index(trials["trial_id"]))))
    text = ("kind", "scheme", "selection", "subject")
    return frame.astype(dict.fromkeys(text, "category"))


def _capacity_rows(capacity: Capacity, rows: pd.DataFrame, analysis: AnalysisSpec, losses: Losses) -> pd.DataFrame:
    all_rows = len(rows) == len(capacity.learned_bits)
    chosen = slice(None) if all_rows else rows.index.to_numpy()
    return pd.DataFrame(
        {
            "trial": rows["trial"].to_numpy(),
            "step": rows["step"].to_numpy(),
            "exposures": rows["exposures"].to_numpy(),
            "kind": str(capacity.kind),
            "scheme": str(capacity.reading.scheme),
            "selection": str(capacity.reading.selection),
            "incremental": capacity.incremental,
            "population": capacity.population,
            "subject": capacity.subject,
            "dataset_bits": capacity.dataset_bits,
            "baseline_bits": capacity.baseline_bits,
            "learned_bits": capacity.learned_bits[chosen],
            "standard_error_bits": capacity.standard_error_bits[chosen],
            "headline": capacity.is_headline(losses, analysis),
            "final": rows["final"].to_numpy(),
        }
    )
