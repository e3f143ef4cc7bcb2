"""Access to a sweep from notebooks: its results as tidy data frames, and its figures."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import pandas as pd

from raycap.analysis import tidy
from raycap.analysis.analyse import Analysis
from raycap.analysis.answer import answer
from raycap.analysis.figures.all import FIGURES
from raycap.analysis.figures.style import for_paper
from raycap.analysis.stored import analyse_stored
from raycap.storage.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def load(folder: str | os.PathLike[str]) -> "Results":
    """Load the results of a sweep from its folder or URI, as data frames and figures.

    Only the stored files are read; Ray and MLflow are not imported. This takes seconds for thousands of trials.

    Args:
        folder: Folder or URI of the sweep, such as `runs/grid` or `s3://bucket/runs/grid`.

    Raises:
        FileNotFoundError: The folder holds no sweep.
        ValueError: A file of the sweep cannot be read.
    """
    opened = SweepFolder.at(os.fspath(folder))
    record = opened.read_sweep()
    # The folder may have been renamed or copied since the record was written.
    spec = record.spec.model_copy(update={"name": opened.name})
    return Results(analyse_stored(record.model_copy(update={"spec": spec}), opened.storage))


@dataclass(frozen=True)
class Results:
    """The results of a sweep that has run. Bits are those of each trial's last kind of text.

    Every frame of trials has a column per axis of the grid, named by its dotted path. Sections, lists and null are JSON
    text there, so that rows can be grouped by them.
    """

    analysis: Analysis
    """The whole analysis, from which the report is made."""

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

        Columns: trial_id, label, state, scheme, selection, the axes of the grid, sizes, arms and verdicts, dataset_bits
        (the code length), learned_bits and bits_per_param with standard errors (from sampling questions) and the spread
        over the seeds of the cell (standard deviation, seed_spread_bits) at the last evaluation, and excluded, the reason
        why the trial does not enter the proportional law. Values that were not measured are NaN.
        """
        return tidy.trial_frame(self.analysis)

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """Data frame with one row per evaluation and reading.

        Columns: trial_id, label, scheme, selection, the axes of the grid, step, exposures, tokens, learning_rate,
        train_loss_bits (mean per text), train_seconds, parameter_norm, and the same bits as in `trials`.
        """
        return tidy.evaluation_frame(self.analysis)

    @cached_property
    def losses(self) -> pd.DataFrame:
        """Data frame with one row per evaluation, kind of text, subject, part, split, population and frequency class.

        Columns: trial_id, label, the axes of the grid, step, exposures, final (whether it is the last evaluation), kind,
        subject, part ("answer" or "chain"), split ("train" or the component that is held out of questions of two or more
        hops), population, frequency_class (0 if people are equally frequent), loss_bits (the mean of a text),
        standard_error_bits (from sampling, 0 where every text was evaluated), num_evaluated and num_texts. To average over
        rows, weight them by num_texts.
        """
        return tidy.loss_frame(self.analysis)

    @cached_property
    def generalisation(self) -> pd.DataFrame:
        """Data frame of the generalisation matrix at the last evaluation: one row per trial, population, part and split.

        Columns: trial_id, label, the axes of the grid, population, part, split, and the mean loss in bits of each kind of
        text. Kinds without such texts are NaN.
        """
        return tidy.generalisation_frame(self.analysis)

    @cached_property
    def frequencies(self) -> pd.DataFrame:
        """Data frame with one row per evaluation, selection, population and frequency class; empty without frequencies.

        Columns: trial_id, label, selection, the axes of the grid, step, exposures, final, kind, population, frequency_class
        (0 is the most frequent), name, num_people, frequency (relative to the mean), class_exposures (frequency times
        exposures), dataset_bits and learned_bits of the class with its names, and learned_share (of the bits whose loss is
        measured).
        """
        return tidy.class_frame(self.analysis)

    @cached_property
    def laws(self) -> pd.DataFrame:
        """Data frame with one row per reading, and for each arm if the grid compares values.

        Columns: arm (values of the compared axes, such as "num_layers 2"; "" if none is compared), scheme, selection, bits
        per parameter alpha with its 95 % interval [low, high], the exponent gamma of the power law with its interval, noise,
        num_trials, num_cells and status. Numbers that no law gives are NaN.
        """
        return tidy.law_frame(self.analysis)

    @cached_property
    def contrasts(self) -> pd.DataFrame:
        """Data frame that compares the values of each axis of the grid: one row per axis, outcome and value.

        Columns: axis, outcome ("bits_per_param" or "loss_bits"), the kind, split and population of a loss, value, mean,
        best (the value with the best mean), difference to its mean with the 95 % interval [low, high] over seeds, p_value
        (corrected for the number of comparisons), verdict ("better", "worse" or "undecided"), num_settings, num_seeds and
        paired. See docs/science.md#contrasts.
        """
        return tidy.contrast_frame(self.analysis)

    @cached_property
    def model_evaluations(self) -> pd.DataFrame:
        """Data frame with one row per stored model that `raycap evaluate` has evaluated and form of its weights.

        Columns: trial_id, label, the axes of the grid, step, exposures, weights ("as stored", or how they were compressed,
        such as "quantise int4"), learned_bits and bits_per_param under the headline's reading, kept_share (of the learned
        bits of the model as stored), and the mean loss of each kind of text, such as one_hop_loss_bits.
        """
        return tidy.model_evaluation_frame(self.analysis)

    @cached_property
    def compositions(self) -> pd.DataFrame:
        """Data frame with one row per model whose two-hop questions `raycap losses --per-question` has analysed.

        Columns: trial_id, label, the axes of the grid, step, exposures, mechanism ("composed", "memorised", "mixed" or
        "undecided"), memorised_share, and the gap of trained questions and of held-out tuples to the loss that composition
        predicts (trained_gap_bits, held_out_gap_bits), each with its standard error over bridges (such as
        memorised_share_error). See docs/science.md#per-question.
        """
        return tidy.composition_frame(self.analysis)

    @cached_property
    def probes(self) -> pd.DataFrame:
        """Data frame with one row per model that `raycap probe` has read, kind, split, target, layer and site.

        Columns: trial_id, label, the axes of the grid, step, exposures, family and seed of the probes, kind, split, target,
        site, layer, num_texts, and per question entropy_bits, usable_bits, control_bits and untrained_bits with standard
        errors, code_length_bits and selectivity_bits. See docs/probes.md#numbers.
        """
        return tidy.probe_frame(self.analysis)

    @cached_property
    def interchanges(self) -> pd.DataFrame:
        """Data frame with one row per model that `raycap probe` has read, kind, site, layer and space.

        Columns: trial_id, label, the axes of the grid, step, exposures, family, seed, kind, site, layer, space,
        num_dimensions, num_pairs, and gained_bits and moved_share with standard errors. See docs/probes.md#interchange.
        """
        return tidy.interchange_frame(self.analysis)

    @cached_property
    def localisation(self) -> pd.DataFrame:
        """Data frame with one row per model that `raycap localise` has ablated, ablation, part and layer.

        Columns: trial_id, label, the axes of the grid, step, exposures, seed of the other texts, ablation ("mean",
        "resample", or the format to which the part's weights are rounded), part ("embedding", "attention", "mlp", "block" or
        "model"), layer (0 for the embeddings, <NA> for all layers together), the learned_bits that are left, lost_bits,
        lost_share (of the bits whose loss is measured), and for each kind of text its mean loss and the lost bits that are
        counted from it alone, such as one_hop_loss_bits and one_hop_lost_bits. See docs/probes.md#localise.
        """
        return tidy.localisation_frame(self.analysis)

    def figure(self, name: str = "capacity", style: Literal["report", "paper"] = "report") -> "Figure":
        """Draw a figure of the report.

        Args:
            name: name of the figure.
            style: "paper" leaves out the title and the caption, which a paper sets in its own text. The figure has them as
                `title` and `caption`.

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
        return for_paper(drawn) if style == "paper" else drawn

    def __repr__(self) -> str:
        finished, planned = len(self.analysis.measured), len(self.analysis.sweep.trials)
        return f"<results of {self.name}: {finished} of {planned} trials finished. {self.answer}>"
