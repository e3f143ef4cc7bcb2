"""The sections of a sweep's report, as HTML: laws, comparison, training, trials, what was left out, where it came from."""

import json
import math
from collections import Counter
from html import escape
from typing import Any

from raycap.analysis.analyse import Analysis
from raycap.analysis.curves import Convergence
from raycap.analysis.html import note, table
from raycap.analysis.intervals import Interval
from raycap.analysis.selection import Verdict, in_order
from raycap.analysis.summary import state

TRIALS_SHOWN = 300
"""Trials in the table; capacity.parquet and summary.json hold all of them."""


def sections(analysis: Analysis, trials: list[dict[str, Any]]) -> str:
    """All of them, those with nothing to say left out; `trials` are those of the summary."""
    return "".join(
        [
            _laws(analysis),
            _comparison(analysis),
            _training(analysis),
            _trials(analysis, trials),
            _exclusions(analysis),
            _failures(analysis),
            _method(analysis),
            _provenance(analysis),
            _rerun(analysis),
        ]
    )


def _interval(told: Interval, digits: int = 3) -> str:
    return f"{told.estimate:.{digits}f} [{told.low:.{digits}f}, {told.high:.{digits}f}]"


def _laws(analysis: Analysis) -> str:
    proportional, power = [], []
    for reading, law in analysis.laws.items():
        bent = law.power
        name = escape(str(reading))
        trials = f"{law.num_trials} in {law.num_cells}"
        proportional.append([name, _interval(law.alpha), f"{100 * law.noise:.1f} %", trials, str(law.status)])
        profile = f"[{bent.profile[0]:.3f}, {bent.profile[1]:.3f}]".replace("nan", "–")
        capacity, trials = _interval(bent.bits_per_param), f"{bent.num_trials} in {bent.num_cells}"
        power.append([name, _interval(bent.gamma), profile, capacity, trials, str(bent.status)])
    header = ["learned bits = α P", "α (bits/param)", "noise", "trials, cells", "status"]
    made = "<h2>Laws</h2>" + table(header, proportional)
    reference = analysis.law.power.reference_params
    at = f" at P₀ = {reference:,.0f}" if math.isfinite(reference) else ""
    header = ["smooth-min(C (P/P₀)^γ, H)", "γ", "by profile likelihood", f"bits/param{at}", "trials, cells", "status"]
    made += table(header, power)
    made += note(
        "α: learned bits = α P over capacity-limited trials. γ: learned bits = smooth-min(C (P/P₀)^γ, H) over all trials "
        "that learned something, H the bits of the data. Intervals are at 95 %, from 4,000 resamples of cells and of the "
        "seeds within them, brought to the width of the jackknife over cells; noise is the robust standard deviation of "
        "log residuals."
    )
    if analysis.law.arms:
        arms = [
            [escape(f"{arm.name}: {arm.value}"), escape(arm.baseline), _interval(arm.ratio), str(arm.num_trials)]
            for arm in analysis.law.arms
        ]
        made += "<h2>What arms change</h2>" + table(["arm", "against", "ratio of capacities", "trials"], arms)
    return made


def _comparison(analysis: Analysis) -> str:
    comparison = analysis.comparison
    if len(comparison.readings) < 2:
        return ""
    if not comparison.pairs:
        told = f"{comparison.num_cells} cells that are neither exhausted nor ignorant are too few to compare readings."
        return "<h2>Which reading fits</h2>" + note(told)
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
            _interval(pair.difference_bits),
            f"{pair.difference_by_size_bits:.3f}",
            f"{pair.p_value:.4f}",
            f"<b>{pair.verdict}</b>" if pair.verdict is not Verdict.UNDECIDED else str(pair.verdict),
        ]
        for pair in comparison.pairs
    ]
    trends = [
        [escape(str(trend.reading)), escape(trend.quantity), _interval(trend.exponent), str(trend.constancy)]
        for trend in comparison.trends
    ]
    made = "<h2>Which reading fits</h2>"
    made += table(["reading", "score by cell (bits)", "score by size (bits)", "stacking weight"], scores)
    made += table(["pair", "difference (bits a cell)", "by size", "p, Holm-corrected", "the first is"], pairs)
    if trends:
        made += table(["reading", "quantity", "exponent of bits/param", "bits/param are"], trends)
    notes = [f"{one} says the same as {other}." for one, other in comparison.same.items()]
    mute = [reading for reading in analysis.laws if reading not in (*comparison.readings, *comparison.same)]
    notes += [f"{reading} says nothing: under it some data hold no bits." for reading in mute]
    without = [
        reading for reading in comparison.readings if all(trend.reading != reading for trend in comparison.trends)
    ]
    if without:
        notes.append(
            f"No exponents for {'; '.join(map(str, without))}: some bits are not positive, cells are too few, or P, N and R "
            "do not vary independently."
        )
    return made + note(
        "Each reading predicts the losses of a cell (or of all models of a size) from the others; scores are mean log2 "
        f"densities of {comparison.num_trials} trials in {comparison.num_cells} cells of {comparison.num_sizes} sizes. A "
        "pair is decided if the difference is significant at 5 % after Holm's correction (paired bootstrap over cells) and "
        "has the same sign when sizes are left out. The right reading keeps bits per parameter constant: exponents within "
        f"±0.1 by two one-sided tests at 5 %. {' '.join(notes)}"
    )


def _training(analysis: Analysis) -> str:
    counts = Counter(str(verdict) for verdict in analysis.training["convergence"])
    if not counts:
        return ""
    rows = [[escape(name), str(count)] for name, count in counts.most_common()]
    learning = counts[str(Convergence.STILL_LEARNING)]
    caution = " The law is that of this length of training, not of its end." if learning else ""
    return (
        "<h2>Training</h2>"
        + table(["trials are", "number"], rows)
        + note(
            "Dataset exhausted: less than a tenth of the answers' entropy is lost. Diverged: 5 % of it more is lost than "
            "at an earlier evaluation. Still learning: learned bits grew by more than 5 % over the last doubling of "
            f"exposures. Converged: by less.{caution}"
        )
    )


def _trials(analysis: Analysis, entries: list[dict[str, Any]]) -> str:
    scheme, selection = analysis.headline
    rows = []
    for trial in entries[:TRIALS_SHOWN]:
        cells = [escape(trial["label"]), f"{trial['num_params']:,}", f"{trial['num_non_embedding_params']:,}"]
        if trial["state"] == "finished":
            columns = ("learned_bits", "bits_per_param", "bits_per_non_embedding_param")
            bits, total, rest = (trial[column][str(scheme)][str(selection)] for column in columns)
            loss = " / ".join(f"{value:.2f}" for value in trial["loss_bits"].values())
            cells += [f"{trial['exposures']:,.0f}", loss, f"{bits:,.0f}", f"{total:.3f}", f"{rest:.3f}"]
            cells += [f"{trial['train_seconds']:,.0f}", trial["convergence"], escape(trial["excluded"] or "")]
        else:
            cells += ["", "", "", "", "", "", "", f'<span class="failed">{trial["state"]}</span>']
        rows.append(cells)
    header = [
        "trial",
        "parameters",
        "non-embedding",
        "exposures",
        "loss (bits)",
        "learned bits",
        "bits/param",
        "bits/non-emb.",
        "seconds",
        "training",
        "excluded",
    ]
    shown = (
        f"The first {TRIALS_SHOWN} of {len(entries):,}; summary.json has all." if len(entries) > TRIALS_SHOWN else ""
    )
    return "<h2>Trials</h2>" + table(header, rows) + (note(shown) if shown else "")


def _exclusions(analysis: Analysis) -> str:
    excluded = analysis.law.excluded
    if not excluded:
        return ""
    labels = {trial.trial_id: trial.label for trial in analysis.sweep.trials}
    by_reason: dict[str, list[str]] = {}
    for trial_id, reason in excluded.items():
        by_reason.setdefault(reason, []).append(labels[trial_id])
    rows = [
        [escape(reason), str(len(of_reason)), escape(", ".join(of_reason[:20]) + (" …" if len(of_reason) > 20 else ""))]
        for reason, of_reason in by_reason.items()
    ]
    return (
        "<h2>Left out of the proportional law</h2>"
        + table(["reason", "trials", "which"], rows)
        + note("Trials whose data are exhausted stay in the power law, which bends where data run out.")
    )


def _failures(analysis: Analysis) -> str:
    if not analysis.failures:
        return ""
    labels = {trial.trial_id: trial.label for trial in analysis.sweep.trials}
    rows = [[escape(labels[failure.trial_id]), escape(failure.cause)] for failure in analysis.failures.values()]
    return "<h2>Failed trials</h2>" + table(["trial", "cause"], rows)


def _method(analysis: Analysis) -> str:
    sampled = any(
        (one.losses.num_evaluated < one.losses.questions.num_texts).any() for one in analysis.measured.values()
    )
    coverage = "a sample of the longer and all of the one-hop questions" if sampled else "the whole population"
    spec = analysis.sweep.spec.analysis
    told = (
        f"Losses are measured on {coverage}, in bits per answer, end token included; learned bits are the code length "
        f"of the data minus the lost bits. Entropies are {spec.accounting}; "
        f"{'each subject is read by its own loss' if spec.per_subject else 'only the mean loss over all subjects counts'}"
        f"{'; one-hop bits are counted beside those of longer questions' if spec.incremental else ''}."
    )
    latent = analysis.kind.hops > 1 and not analysis.sweep.trials[0].spec.questions.chain_of_thought
    if latent:
        told += (
            " What one hop loses is inferred from longer questions, subject by subject; near chance that is steep, and a "
            "little known of two hops reads as much more of one."
        )
    return "<h2>How it was measured</h2>" + note(told)


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
    told = (
        f"{finished} of {len(analysis.sweep.trials)} trials finished. The last run took {analysis.run.wall_seconds:,.0f} s "
        f"of wall time, up to {analysis.run.slots} trials at once; all training steps together {device} device hours. "
        "A commit with “+changes” had uncommitted changes in raycap."
    )
    return "<h2>Provenance</h2>" + table(["code", "versions", "machine", "trials"], rows) + note(told)


def _rerun(analysis: Analysis) -> str:
    spec = analysis.sweep.spec
    written = analysis.sweep.spec_yaml or json.dumps(spec.model_dump(mode="json"), indent=2)
    resolved = json.dumps(spec.model_dump(mode="json", include={"analysis", "grid", "trial"}), indent=1)
    return (
        "<h2>To run it again</h2>"
        + note(
            f"Save this as {spec.name}.yaml, check out the commit above, and run: python -m raycap.sweep {spec.name}.yaml"
        )
        + f"<pre>{escape(written)}</pre><details><summary>The spec as it ran, overrides included</summary>"
        + f"<pre>{escape(resolved)}</pre></details>"
    )
