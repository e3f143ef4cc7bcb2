"""The sections of report.html: laws, comparison of readings, training, trials, exclusions, failures, method, provenance."""

import json
import math
from collections import Counter
from html import escape
from typing import Any

from raycap.analysis.analyse import Analysis
from raycap.analysis.curves import Convergence
from raycap.analysis.exclusions import REMEDIES, RULES
from raycap.analysis.figures.points import describe_reading
from raycap.analysis.frequency_section import frequency_section
from raycap.analysis.html import note, table
from raycap.analysis.intervals import Interval
from raycap.analysis.laws import MIN_SIZE_RATIO
from raycap.analysis.localisation_section import localisation_section
from raycap.analysis.model_section import model_section
from raycap.analysis.selection import MIN_CELLS, Verdict, in_order
from raycap.analysis.summary import state
from raycap.analysis.table_section import facts_section
from raycap.results.texts import bits_per_param_text

TRIALS_SHOWN = 300
"""The most trials in the table of the report; capacity.parquet and summary.json have all of them."""


def report_sections(analysis: Analysis, trials: list[dict[str, Any]]) -> str:
    """Return all sections that are not empty as HTML. `trials` are the entries of `summary`."""
    return "".join(
        [
            _laws(analysis),
            facts_section(analysis),
            frequency_section(analysis),
            _comparison(analysis),
            _training(analysis),
            _trials(analysis, trials),
            model_section(analysis),
            localisation_section(analysis),
            _exclusions(analysis),
            _failures(analysis),
            _method(analysis),
            _provenance(analysis),
            _rerun(analysis),
        ]
    )


def _format_interval(interval: Interval) -> str:
    """Return an estimate with its interval; a dash where there is none."""
    if not math.isfinite(interval.estimate):
        return "–"
    return f"{interval.estimate:.3f} {_format_ends(interval.low, interval.high)}".rstrip(" –")


def _format_ends(low: float, high: float) -> str:
    return f"[{low:.3f}, {high:.3f}]" if math.isfinite(low) else "–"


def _format_size(num_params: float) -> str:
    return f"{num_params:,.0f}" if math.isfinite(num_params) else "–"


def _laws(analysis: Analysis) -> str:
    """Return the tables of both laws, of each arm, of the ratios between arms and of the best settings of training."""
    groups = [(arm.label, arm.laws) for arm in analysis.arms] or [("", analysis.laws)]
    proportional, power = [], []
    for label, laws in groups:
        for reading, law in laws.items():
            name = [escape(label)] * bool(label) + [escape(str(reading))]
            counts = [str(law.num_trials), str(law.num_cells)]
            noise = f"{100 * law.noise:.1f} %" if math.isfinite(law.noise) else "–"
            proportional.append([*name, _format_interval(law.alpha), noise, *counts, str(law.status)])
            intervals = [_format_interval(law.power.gamma), _format_ends(*law.power.profile)]
            counts = [str(law.power.num_trials), str(law.power.num_cells)]
            at = [_format_interval(law.power.bits_per_param), _format_size(law.power.reference_params)]
            power.append([*name, *intervals, *at, *counts, str(law.power.status)])
    first = ["values"] * bool(analysis.arms) + ["reading"]
    body = "<h2>Laws</h2><h3>Proportional law: learned bits = α P</h3>"
    body += table([*first, "α (bits/param) [95 %]", "noise", "trials", "cells", "status"], proportional)
    header = [
        *first,
        "γ [95 %]",
        "γ, profile likelihood [95 %]",
        "bits/param at P₀ [95 %]",
        "P₀",
        "trials",
        "cells",
        "status",
    ]
    body += "<h3>Power law: learned bits = smooth-min(C (P/P₀)^γ, H)</h3>" + table(header, power)
    body += note(
        "P is the number of parameters and H the bits of the data. The proportional law is fitted to the capacity-limited "
        "trials, the power law to all trials that learned something. Brackets are 95 % intervals: the jackknife over cells "
        "gives their width, and skewness of 4,000 bootstrap resamples of cells and of the seeds within them lengthens one "
        "side. Noise is the robust standard deviation of log residuals. A law needs models that differ by at least a "
        f"factor of {MIN_SIZE_RATIO:g} in parameters, and three cells for an interval."
    )
    body += _outliers(analysis)
    if analysis.law.ratios:
        ratios = [
            [escape(f"{arm.name}: {arm.value}"), escape(arm.baseline), _format_interval(arm.ratio), str(arm.num_trials)]
            for arm in analysis.law.ratios
        ]
        body += "<h2>Ratios between compared values</h2>"
        body += table(["value", "baseline", "capacity ratio [95 %]", "trials"], ratios)
    return body + _best_settings(analysis)


def _best_settings(analysis: Analysis) -> str:
    if not analysis.best_settings:
        return ""
    rows = [
        [
            escape(setting.elsewhere or "all trials"),
            escape(setting.chosen),
            f"{setting.learned_bits:,.0f}",
            f"{setting.second_learned_bits:,.0f}" if setting.num_settings > 1 else "–",
            str(setting.num_settings),
            str(setting.num_seeds),
        ]
        for setting in analysis.best_settings
    ]
    return (
        "<h3>Best settings of training</h3>"
        + table(["cell", "best setting", "learned bits", "second best", "settings", "seeds"], rows[:TRIALS_SHOWN])
        + note(
            f"Learned bits are means over seeds under {describe_reading(analysis.headline)}. Only the best setting of each "
            "cell enters the laws. The best of several noisy means is too large on average, so the interval of α begins "
            "lower by the largest such excess (docs/science.md#pooling)."
        )
    )


def _outliers(analysis: Analysis) -> str:
    law = analysis.law
    if not law.outliers:
        return ""
    labels = {trial.trial_id: trial.label for trial in analysis.sweep.trials}
    rows = [[escape(labels[trial_id]), f"{factor:.3g}"] for trial_id, factor in law.outliers.items()]
    return (
        "<h3>Outliers</h3>"
        + table(["trial", "learned bits / law"], rows)
        + note(
            f"The noise of the other trials does not explain these, under {describe_reading(analysis.headline)}. They are "
            "in the laws, where their influence is bounded, and the intervals are wider for them. Look at their training: "
            "if something went wrong, delete their results and run the sweep again."
        )
    )


def _comparison(analysis: Analysis) -> str:
    comparison = analysis.comparison
    if len(comparison.readings) < 2:
        return ""
    if not comparison.pairs:
        text = (
            f"The readings cannot be compared: there are only {comparison.num_cells} cells whose trials learned something "
            f"and did not exhaust their dataset, and a comparison needs {MIN_CELLS}. Add sizes, or people and relations "
            "that the models cannot learn completely."
        )
        return "<h2>Comparison of readings</h2>" + note(text)
    scores = [
        [
            escape(str(reading)),
            f"{comparison.scores_bits[reading]:.3f}",
            f"{comparison.scores_by_size_bits.get(reading, float('nan')):.3f}",
            f"{comparison.weights[reading]:.2f}",
        ]
        for reading in in_order(comparison)
    ]
    pairs = [
        [
            f"{escape(str(pair.one))} against {escape(str(pair.other))}",
            _format_interval(pair.difference_bits),
            f"{pair.difference_by_size_bits:.3f}",
            f"{pair.p_value:.4f}",
            f"<b>{pair.verdict}</b>" if pair.verdict is not Verdict.UNDECIDED else str(pair.verdict),
        ]
        for pair in comparison.pairs
    ]
    trends = [
        [escape(str(trend.reading)), escape(trend.quantity), _format_interval(trend.exponent), str(trend.constancy)]
        for trend in comparison.trends
    ]
    body = "<h2>Comparison of readings</h2>"
    body += table(["reading", "score by cell (bits)", "score by size (bits)", "stacking weight"], scores)
    header = ["pair", "score difference by cell (bits) [95 %]", "score difference by size (bits)", "p (Holm)"]
    body += table([*header, "verdict on the first"], pairs)
    if trends:
        body += table(["reading", "quantity", "exponent of bits/param [95 %]", "bits/param"], trends)
    notes = [f"{one} is equal to {other} on these data." for one, other in comparison.same.items()]
    not_compared = [reading for reading in analysis.laws if reading not in (*comparison.readings, *comparison.same)]
    notes += [f"{reading} is not compared: some data have no bits under it." for reading in not_compared]
    without = [
        reading for reading in comparison.readings if all(trend.reading != reading for trend in comparison.trends)
    ]
    if without:
        notes.append(
            f"No exponents for {'; '.join(map(str, without))}: some learned bits are not positive, there are too few "
            "cells, or P, N and R do not vary independently."
        )
    return body + note(
        "Each reading predicts the losses of one cell (or of all cells of one size) from the other cells. Scores are mean "
        f"log2 predictive densities per cell, over {comparison.num_trials} trials in {comparison.num_cells} cells of "
        f"{comparison.num_sizes} sizes. A pair is decided if the difference by cell is significant at 5 % after Holm's "
        "correction (paired bootstrap over cells) and the difference by size has the same sign. Under the correct reading "
        "bits per parameter are constant: their exponents lie within ±0.1 by two one-sided tests at 5 %. "
        f"{' '.join(notes)}"
    )


def _training(analysis: Analysis) -> str:
    counts = Counter(str(verdict) for verdict in analysis.training["convergence"])
    if not counts:
        return ""
    rows = [[escape(name), str(count)] for name, count in counts.most_common()]
    learning = counts[str(Convergence.STILL_LEARNING)]
    caution = (
        " Some trials are still learning, so the laws hold for this length (training.length) only." if learning else ""
    )
    return (
        "<h2>Training</h2>"
        + table(["verdict", "trials"], rows)
        + note(
            "Dataset exhausted: the final loss is less than 10 % of the entropy of the answers. Diverged: the final loss "
            "exceeds that of an earlier evaluation by 5 % of this entropy. Still learning: learned bits grew by more than "
            f"5 % over the last doubling of exposures. Converged: they grew by less.{caution}"
        )
    )


def _trials(analysis: Analysis, entries: list[dict[str, Any]]) -> str:
    scheme, selection = analysis.headline
    rows = []
    for trial in entries[:TRIALS_SHOWN]:
        cells = [escape(trial["label"]), f"{trial['num_params']:,}", f"{trial['num_non_embedding_params']:,}"]
        if trial["state"] == "finished":
            columns = ("learned_bits", "bits_per_param", "bits_per_non_embedding_param")
            bits, per_param, per_non_embedding = (trial[column][str(scheme)][str(selection)] for column in columns)
            loss = " / ".join(f"{value:.2f}" for value in trial["loss_bits"].values())
            error, spread = (
                trial[column][str(scheme)][str(selection)] for column in ("standard_error_bits", "seed_spread_bits")
            )
            cells += [
                f"{trial['exposures']:,.0f}",
                loss,
                f"{bits:,.0f}",
                f"{error:,.0f}",
                "–" if spread is None else f"{spread:,.0f}",
                bits_per_param_text(per_param),
                bits_per_param_text(per_non_embedding),
            ]
            cells += [f"{trial['train_seconds']:,.0f}", trial["convergence"], escape(trial["excluded"] or "")]
        else:
            cells += [*[""] * 9, f'<span class="failed">{trial["state"]}</span>']
        rows.append(cells)
    header = [
        "trial",
        "parameters",
        "non-embedding parameters",
        "exposures",
        "loss per question (bits)",
        "learned bits",
        "standard error (bits)",
        "spread over seeds (bits)",
        "bits/param",
        "bits/non-embedding param",
        "training (s)",
        "verdict",
        "excluded",
    ]
    text = (
        f"Learned bits are counted under {describe_reading(analysis.headline)}. Losses are means per kind of question. The "
        "standard error comes from sampling questions and is 0 where all were evaluated. The spread is the standard "
        "deviation over trials that differ in their seeds only."
    )
    if len(entries) > TRIALS_SHOWN:
        text += f" The first {TRIALS_SHOWN} of {len(entries):,} trials are shown; summary.json has all of them."
    return "<h2>Trials</h2>" + table(header, rows) + note(text)


def _exclusions(analysis: Analysis) -> str:
    excluded = analysis.law.excluded
    if not excluded:
        return ""
    labels = {trial.trial_id: trial.label for trial in analysis.sweep.trials}
    evaluations = analysis.tables.evaluations
    finals = evaluations[evaluations["final"].astype(bool)]
    ids = analysis.tables.trials["trial_id"].loc[finals["trial"]]
    lost = dict(zip(ids, finals["lost_share"].astype(float), strict=True))
    by_reason: dict[str, list[str]] = {}
    for trial_id, reason in excluded.items():
        value = f" ({lost[trial_id]:.2f})" if trial_id in lost else ""
        by_reason.setdefault(reason, []).append(labels[trial_id] + value)
    rules = {str(reason): rule for reason, rule in RULES.items()}
    rows = [
        [
            escape(reason),
            escape(rules.get(reason, "–")),
            str(len(names)),
            escape(", ".join(names[:20]) + (" …" if len(names) > 20 else "")),
        ]
        for reason, names in by_reason.items()
    ]
    remedies = "; ".join(f"{reason}: {remedy}" for reason, remedy in REMEDIES.items() if reason in by_reason)
    return (
        "<h2>Trials excluded from the proportional law</h2>"
        + table(["reason", "rule", "number", "trials (lost share of the answers' entropy at the end)"], rows)
        + note(
            f"Trials with an exhausted dataset remain in the power law, which saturates at the bits of the data. {remedies}"
        )
    )


def _failures(analysis: Analysis) -> str:
    if not analysis.failures:
        return ""
    labels = {trial.trial_id: trial.label for trial in analysis.sweep.trials}
    rows = [[escape(labels[failure.trial_id]), escape(failure.cause)] for failure in analysis.failures.values()]
    return "<h2>Failed trials</h2>" + table(["trial", "cause"], rows)


def _method(analysis: Analysis) -> str:
    measured = analysis.measured.values()
    sampled = any((one.losses.num_evaluated < one.losses.questions.num_texts).any() for one in measured)
    coverage = "all one-hop questions and a sample of those of more hops" if sampled else "all texts"
    spec = analysis.sweep.spec.analysis
    text = (
        f"Losses are measured on {coverage}, in bits per answer including the end token. Learned bits are the code length "
        f"of the data minus the bits that are still lost. Entropies are {spec.accounting}. "
        f"{'Bits are computed per subject' if spec.per_subject else 'Bits are computed from the mean over all subjects'}"
        f"{'; the bits of one-hop questions are added to those of questions of more hops' if spec.incremental else ''}."
    )
    latent = analysis.kind.hops > 1 and not analysis.sweep.trials[0].spec.questions.chain_of_thought
    if latent:
        text += (
            " The loss of one hop is inferred from the loss of questions of more hops, separately for each subject. Near "
            "chance the inverse is steep: a small gain in two-hop questions counts as a much larger gain in one hop."
        )
    return "<h2>Method</h2>" + note(text)


def _provenance(analysis: Analysis) -> str:
    trials = analysis.tables.trials
    origins = Counter(
        (one.provenance.git_commit, json.dumps(one.provenance.versions), one.provenance.host, one.provenance.device)
        for one in analysis.measured.values()
    )
    rows = [
        [
            escape(commit),
            escape(", ".join(f"{name} {version}" for name, version in json.loads(versions).items())),
            escape(f"{host}, {device}"),
            str(count),
        ]
        for (commit, versions, host, device), count in origins.most_common(20)
    ]
    finished = sum(state(analysis, trial.trial_id) == "finished" for trial in analysis.sweep.trials)
    device = f"{trials['device_seconds'].sum() / 3600:,.2f}" if "device_seconds" in trials else "0.00"
    last = "The record of the last run, run.json, cannot be read. The next run writes it again."
    if analysis.run:
        last = (
            f"The last run took {analysis.run.wall_seconds:,.0f} s of wall time with at most {analysis.run.slots} trials at "
            "the same time."
        )
    text = (
        f"{finished} of {len(analysis.sweep.trials)} trials have finished. {last} All "
        f"training steps together took {device} device hours. “+changes” marks a commit with uncommitted changes in raycap."
    )
    return "<h2>Provenance</h2>" + table(["commit", "versions", "machine", "trials"], rows) + note(text)


def _rerun(analysis: Analysis) -> str:
    spec = analysis.sweep.spec
    written = analysis.sweep.spec_yaml or json.dumps(spec.model_dump(mode="json"), indent=2)
    resolved = json.dumps(spec.model_dump(mode="json", include={"analysis", "grid", "trial"}), indent=1)
    return (
        "<h2>How to repeat the sweep</h2>"
        + note(
            f"Save this spec as {spec.name}.yaml, check out the commit above, and run: "
            f"python -m raycap.sweep {spec.name}.yaml"
        )
        + f"<pre>{escape(written)}</pre><details><summary>The spec with all overrides applied</summary>"
        + f"<pre>{escape(resolved)}</pre></details>"
    )
