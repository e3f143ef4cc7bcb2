"""What figures draw, in tables, and what their captions say of it."""

import pandas as pd

from raycap.analysis.analyse import Analysis, ExclusionReason
from raycap.analysis.capacity import TOTAL
from raycap.analysis.readings import Reading
from raycap.results import Part
from raycap.spec import Kind

TRIAL_COLUMNS = ["trial", "cell", "num_profiles", "num_relations", "one_hop_share", "hidden_size", "learning_rate"]
TRIAL_COLUMNS += ["parametrization"]


def final_points(analysis: Analysis, reading: Reading | None = None) -> pd.DataFrame:
    """Headline totals at the last evaluation with what was varied; `excluded` says why a trial is in no law, or is ""."""
    totals = analysis.totals(reading, final=True)
    if totals.empty:
        columns = ["trial_id", "num_params", "learned_bits", "bits_per_param", "dataset_bits", "baseline_bits"]
        return pd.DataFrame(columns=[*TRIAL_COLUMNS, *columns, "excluded"], dtype=float)
    excluded = analysis.laws[reading or analysis.headline].excluded
    reasons = [excluded.get(trial_id, "") for trial_id in totals["trial_id"]]
    return totals.assign(excluded=reasons).merge(trials(analysis), on="trial", how="left")


def trials(analysis: Analysis) -> pd.DataFrame:
    """What was varied, a row a planned trial, with its place in the plan."""
    return analysis.tables.trials.rename_axis("trial").reset_index()[TRIAL_COLUMNS]


def loss_curves(analysis: Analysis) -> pd.DataFrame:
    """Loss of answers of the headline kind at every evaluation, of the first population, with the size of the model."""
    table = analysis.tables.losses
    if table.empty:
        return table.assign(num_params=[], held_out_bits=[], loss_bits=[])
    chosen = (table["kind"] == str(analysis.kind)) & (table["part"] == str(Part.ANSWER)) & (table["population"] == 0)
    rows = table[chosen]
    return rows.assign(num_params=analysis.tables.trials["num_params"].to_numpy()[rows["trial"].to_numpy(dtype=int)])


def totals_of(analysis: Analysis, kind: Kind) -> pd.DataFrame:
    """Final totals of one kind of question under the headline reading, those of shorter ones not counted in."""
    table = analysis.tables.capacities
    if table.empty:
        return table
    scheme, selection = analysis.headline
    chosen = table["final"] & (table["kind"] == str(kind)) & (table["subject"] == TOTAL) & ~table["incremental"]
    return table[chosen & (table["scheme"] == str(scheme)) & (table["selection"] == str(selection))]


def lost_shares(analysis: Analysis) -> pd.DataFrame:
    """Share of the entropy of answers that is lost in the end by trial, a column a kind."""
    table = analysis.tables.subjects
    if table.empty:
        return pd.DataFrame()
    sums = table[table["population"] == 0].groupby(["trial", "kind"])[["loss_bits", "uniform_bits"]].sum()
    return (sums["loss_bits"] / sums["uniform_bits"]).unstack("kind")


def about(analysis: Analysis, text: str) -> str:
    """A caption: what is drawn, then how many trials there are, and seeds of each cell."""
    counted = analysis.tables.trials
    finished = counted[counted["finished"]]
    if finished.empty:
        return f"{text} No trial has finished yet ({len(counted)} planned).".strip()
    seeds = finished.groupby("cell").size()
    low, high = int(seeds.min()), int(seeds.max())
    many = f"{low} seed{'s' * (low > 1)}" if low == high else f"{low}–{high} seeds"
    trials = f"{len(finished):,} trial{'s' * (len(finished) > 1)}"
    missing = f" of {len(counted):,} planned" if len(finished) < len(counted) else ""
    return f"{text} {trials}{missing}, {many} a cell.".strip()


def exclusions(analysis: Analysis, reading: Reading | None = None, *, but: ExclusionReason | None = None) -> str:
    """Which trials are drawn open, or not at all, with reasons and counts; empty where there are none.

    `but` is a reason for which a trial is not left out of what is drawn.
    """
    reasons = list(analysis.laws[reading or analysis.headline].excluded.values())
    counts = {reason: sum(text.startswith(reason) for text in reasons) for reason in ExclusionReason if reason != but}
    drawn = [f"{reason} ({n})" for reason, n in counts.items() if n and reason is not ExclusionReason.UNREADABLE]
    sentences = ["Open, left out of the law: " + ", ".join(drawn) + "."] if drawn else []
    unread = counts[ExclusionReason.UNREADABLE]
    return " ".join([*sentences, *([f"Not drawn: unreadable ({unread})."] if unread else [])])
