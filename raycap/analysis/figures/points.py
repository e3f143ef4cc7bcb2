"""Tables of the points that figures draw, and the sentences that captions share."""

import pandas as pd

from raycap.analysis.analyse import Analysis
from raycap.analysis.capacity import TOTAL
from raycap.analysis.exclusions import ExclusionReason
from raycap.analysis.readings import Reading
from raycap.results import Part
from raycap.spec import Kind

TRIAL_COLUMNS = ["trial", "cell", "num_profiles", "num_relations", "one_hop_share", "hidden_size", "learning_rate"]
TRIAL_COLUMNS += ["parametrization"]


def final_points(analysis: Analysis, reading: Reading | None = None) -> pd.DataFrame:
    """Return one row per finished trial: totals at the last evaluation under a reading, and the varied quantities.

    The default reading is the headline. `excluded` is the reason why the trial is not in the proportional law, or "".
    """
    totals = analysis.totals(reading, final=True)
    if totals.empty:
        columns = ["trial_id", "num_params", "learned_bits", "bits_per_param", "dataset_bits", "baseline_bits"]
        return pd.DataFrame(columns=[*TRIAL_COLUMNS, *columns, "excluded"], dtype=float)
    excluded = analysis.laws[reading or analysis.headline].excluded
    reasons = [excluded.get(trial_id, "") for trial_id in totals["trial_id"]]
    return totals.assign(excluded=reasons).merge(trials(analysis), on="trial", how="left")


def trials(analysis: Analysis) -> pd.DataFrame:
    """Return one row per planned trial: its index in the plan (`trial`) and TRIAL_COLUMNS."""
    return analysis.tables.trials.rename_axis("trial").reset_index()[TRIAL_COLUMNS]


def loss_curves(analysis: Analysis) -> pd.DataFrame:
    """Return the answer losses of the headline kind at every evaluation, for the first population, with `num_params`."""
    table = analysis.tables.losses
    if table.empty:
        return table.assign(num_params=[], held_out_bits=[], loss_bits=[])
    chosen = (table["kind"] == str(analysis.kind)) & (table["part"] == str(Part.ANSWER)) & (table["population"] == 0)
    rows = table[chosen]
    return rows.assign(num_params=analysis.tables.trials["num_params"].to_numpy()[rows["trial"].to_numpy(dtype=int)])


def totals_of(analysis: Analysis, kind: Kind) -> pd.DataFrame:
    """Return the final totals of one kind of question under the headline reading, without bits of shorter questions."""
    table = analysis.tables.capacities
    if table.empty:
        return table
    scheme, selection = analysis.headline
    chosen = table["final"] & (table["kind"] == str(kind)) & (table["subject"] == TOTAL) & ~table["incremental"]
    return table[chosen & (table["scheme"] == str(scheme)) & (table["selection"] == str(selection))]


def lost_shares(analysis: Analysis) -> pd.DataFrame:
    """Return final loss / answer entropy of the first population: one row per trial, one column per kind of question."""
    table = analysis.tables.subjects
    if table.empty:
        return pd.DataFrame()
    sums = table[table["population"] == 0].groupby(["trial", "kind"])[["loss_bits", "uniform_bits"]].sum()
    return (sums["loss_bits"] / sums["uniform_bits"]).unstack("kind")


def with_counts(analysis: Analysis, text: str) -> str:
    """Return a caption: the text, then the number of finished and planned trials and of seeds per cell."""
    planned = analysis.tables.trials
    finished = planned[planned["finished"]]
    if finished.empty:
        return f"{text} No trial has finished yet ({len(planned)} planned).".strip()
    seeds = finished.groupby("cell").size()
    low, high = int(seeds.min()), int(seeds.max())
    num_seeds = f"{low} seed{'s' * (low > 1)}" if low == high else f"{low}–{high} seeds"
    num_trials = f"{len(finished):,} trial{'s' * (len(finished) > 1)}"
    missing = f" of {len(planned):,} planned" if len(finished) < len(planned) else ""
    return f"{text} {num_trials}{missing}, {num_seeds} per cell.".strip()


def describe_reading(reading: Reading) -> str:
    """Return a reading as captions and sentences name it, such as "optimal encoding, enumerate names"."""
    return f"{reading.scheme} encoding, {reading.selection} names"


def points_sentence(analysis: Analysis) -> str:
    """Return the caption's statement on points that are trials under the headline reading, without a full stop."""
    return f"Each point is one trial at the end of training ({describe_reading(analysis.headline)})"


def exclusions(analysis: Analysis, law: str = "the law", *, ignored: ExclusionReason | None = None) -> str:
    """Return caption sentences that count the open and the missing points of the headline law by reason, or "".

    `law` is the name of the law in the sentence. Trials excluded for the reason `ignored` are not counted: the power law
    includes exhausted trials, for example.
    """
    reasons = list(analysis.law.excluded.values())
    # The reason of an unreadable trial is followed by details, hence startswith.
    counts = {
        reason: sum(text.startswith(reason) for text in reasons) for reason in ExclusionReason if reason != ignored
    }
    drawn = [f"{reason} ({n})" for reason, n in counts.items() if n and reason is not ExclusionReason.UNREADABLE]
    sentences = [f"Open markers are not in {law}: {', '.join(drawn)}."] if drawn else []
    unreadable = counts[ExclusionReason.UNREADABLE]
    return " ".join([*sentences, *([f"Not drawn: unreadable ({unreadable})."] if unreadable else [])])
