"""Training time until 1.6 bits per parameter are learned: raycap against the usual recipe, on one thread.

    python tests/benchmarks/recipe.py [--exposures 95] [--set trial.training.optimizer.lr=0.03 ...]
                                      [--budget-factor 20] [--json]

Both sides learn the demo's population, N = 1,000 and R = 4. The milestone is the same number of learned bits for both: 1.6
times the 19,376 parameters of the demo's largest model, under the selection `enumerate`. Both are evaluated on every
question, one per row, and read by raycap's accounting. The time is that of training (rows, forward, backward, optimizer),
without evaluations.

  ours    The demo's largest trial with as many exposures as the milestone needs. Its learning rate falls to zero at the
          end, so a trial counts only as a whole: the time is that of the shortest trial that reaches the milestone. It is
          trained before and after the recipe; median.
  recipe  The training of the reference implementation of arXiv 2502.03490, written for this file in torch and
          transformers: a BPE of 3,000 tokens trained on the questions; 32 windows of 512 tokens per step, filled with
          random questions that are rendered as text and tokenised during training, the last one cut off; logits over the
          whole vocabulary at every position, loss on answers only; untied embeddings; schedule-free AdamW, learning rate
          1e-3, betas 0.99 and 0.999, weight decay 0.1, 1,000 warm-up steps, gradients clipped at 1; fp32. Its blocks have
          the size of ours; its embeddings are larger, and therefore its number of parameters. It is evaluated at multiples
          of our time, the time of the milestone is interpolated, and it is stopped after `--budget-factor` times our time.

Target: the recipe takes at least 20 times as long, or has not reached the milestone by then.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from common import child, enumerate_bits, machine, planned, progress, set_threads, show, table

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from raycap.facts.corpus import Corpus
    from raycap.results import LossTable

TARGET = 20.0
BITS_PER_PARAM = 1.6
VOCAB_SIZE, WINDOW, WINDOWS = 3000, 512, 32
HEAD_SIZE, IGNORED = 16, -100
LR, BETAS, WEIGHT_DECAY, WARMUP_STEPS, GRAD_CLIP = 1e-3, (0.99, 0.999), 0.1, 1000, 1.0
EVALUATION_ROWS = 1000
ANSWER = "? Answer:"


def milestone_bits() -> float:
    """Learned bits of the milestone."""
    return BITS_PER_PARAM * planned("demo").parameters.total


def ours(exposures: float, overrides: list[str]) -> dict[str, float]:
    """Train our trial; returns its training time, final bits and size."""
    from raycap.learner.trial import run_trial

    trial = planned("demo", f"trial.training.length={{exposures: {exposures}}}", *overrides)
    result = run_trial(trial.spec, source_commit="benchmark").result
    final = result.final
    bits = enumerate_bits(trial.spec, result.populations, final.losses)
    return {
        "seconds": final.train_seconds,
        "bits": bits,
        "exposures": final.exposures,
        "parameters": result.parameters.total,
        "non_embedding": result.parameters.non_embedding,
    }


class Recipe:
    """Model, optimizer and data of the usual recipe, with a clock that counts training only."""

    def __init__(self) -> None:
        import schedulefree
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from raycap.facts.build import corpora_of, populations_of
        from raycap.spec import BpeTokenizer
        from raycap.tokens.tokenizers import build_tokenizer

        self.spec = planned("demo").spec
        self.populations = tuple(people.facts for people in populations_of(self.spec))
        corpora = corpora_of(populations_of(self.spec)[0], self.spec.questions)
        self.corpus: Corpus = corpora[0]
        self.tokenizer: Tokenizer = build_tokenizer(BpeTokenizer(kind="bpe", vocab_size=VOCAB_SIZE), corpora)
        hidden_size = self.spec.model.hidden_size
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=hidden_size,
            intermediate_size=4 * hidden_size,
            num_hidden_layers=self.spec.model.num_layers,
            num_attention_heads=hidden_size // HEAD_SIZE,
            num_key_value_heads=hidden_size // HEAD_SIZE,
            head_dim=HEAD_SIZE,
            max_position_embeddings=WINDOW,
            tie_word_embeddings=False,
            use_cache=False,
            attn_implementation="sdpa",
            bos_token_id=None,
            eos_token_id=0,
        )
        self.model = LlamaForCausalLM(config)
        self.optimizer = schedulefree.AdamWScheduleFree(
            self.model.parameters(), lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY, warmup_steps=WARMUP_STEPS
        )
        self.rng = np.random.default_rng(0)
        self.seconds, self.steps, self.questions = 0.0, 0, 0

    def texts(self, ids: np.ndarray) -> list[tuple[list[int], list[int]]]:
        """Render and tokenise questions; returns the token ids of each prompt and of each answer with its end token."""
        from raycap.facts.corpus import render_texts

        halves = [text.partition(ANSWER) for text in render_texts(self.corpus, ids)]
        prompts = self.tokenizer.encode_batch_fast([before + mark for before, mark, _ in halves])
        answers = self.tokenizer.encode_batch_fast([after for *_, after in halves])
        return [(prompt.ids, answer.ids) for prompt, answer in zip(prompts, answers, strict=True)]

    def random_texts(self) -> Iterator[tuple[list[int], list[int]]]:
        """Endless stream of random questions, drawn with replacement."""
        while True:
            yield from self.texts(self.rng.integers(self.corpus.num_ids, size=64))

    def windows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of each step, (WINDOWS, WINDOW)."""
        import torch

        texts = self.random_texts()
        while True:
            inputs, labels = [], []
            for _ in range(WINDOWS):
                window: list[int] = []
                label: list[int] = []
                while len(window) < WINDOW:
                    prompt, answer = next(texts)
                    window += prompt + answer
                    label += [IGNORED] * len(prompt) + answer
                    self.questions += len(window) <= WINDOW
                inputs.append(window[:WINDOW])
                labels.append(label[:WINDOW])
            yield torch.tensor(inputs), torch.tensor(labels)

    def train(self, until_seconds: float) -> None:
        """Train until the training time, over all calls, reaches `until_seconds`."""
        import torch

        self.model.train()
        self.optimizer.train()
        batches = self.windows()
        before, began = self.seconds, time.perf_counter()
        while self.seconds < until_seconds:
            input_ids, labels = next(batches)
            loss = self.model(input_ids=input_ids, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRAD_CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.steps += 1
            self.seconds = before + time.perf_counter() - began

    def evaluate(self) -> dict[str, float]:
        """Learned bits at the current state, with its training time, exposures and steps."""
        self.model.eval()
        self.optimizer.eval()
        bits = enumerate_bits(self.spec, self.populations, self.losses())
        exposures = self.questions / self.corpus.num_ids
        return {"seconds": self.seconds, "bits": bits, "exposures": exposures, "steps": self.steps}

    def losses(self) -> LossTable:
        """Losses of all questions by subject, evaluated with one question per row."""
        import torch
        import torch.nn.functional as F

        from raycap.results import LossRow, LossTable

        bits = np.empty(self.corpus.num_ids)
        for begin in range(0, len(bits), EVALUATION_ROWS):
            ids = np.arange(begin, min(begin + EVALUATION_ROWS, len(bits)))
            texts = self.texts(ids)
            longest = max(len(prompt) + len(answer) for prompt, answer in texts)
            padding = [longest - len(prompt) - len(answer) for prompt, answer in texts]
            rows = torch.tensor([p + a + [0] * pad for (p, a), pad in zip(texts, padding, strict=True)])
            marks = [[0] * len(p) + [1] * len(a) + [0] * pad for (p, a), pad in zip(texts, padding, strict=True)]
            measured = torch.tensor(marks)[:, 1:].bool()
            with torch.no_grad():
                features = self.model.model(input_ids=rows[:, :-1]).last_hidden_state[measured]
                nats = F.cross_entropy(self.model.lm_head(features), rows[:, 1:][measured], reduction="none")
            of_text = torch.zeros(len(ids), dtype=torch.float64).index_add_(0, measured.nonzero()[:, 0], nats.double())
            bits[ids] = of_text.numpy() / math.log(2)
        subjects = [measure.subject for measure in self.corpus.measures]
        of_subject = bits.reshape(-1, len(subjects)).T  # a question's subject is the last digit of its id
        rows_of_table = tuple(
            LossRow(
                kind=self.corpus.kind,
                subject=subject,
                sum_bits=float(losses.sum()),
                sum_squares_bits2=float((losses**2).sum()),
                num_evaluated=len(losses),
                num_texts=len(losses),
            )
            for subject, losses in zip(subjects, of_subject, strict=True)
        )
        return LossTable(rows=rows_of_table)


def recipe(goal_bits: float, our_seconds: float, factor: float) -> dict[str, Any]:
    """Train the recipe until `goal_bits` are learned or `factor * our_seconds` have passed; evaluate every `our_seconds`."""
    run = Recipe()
    curve = [run.evaluate()]
    while curve[-1]["bits"] < goal_bits and run.seconds < factor * our_seconds:
        run.train(min(factor, len(curve)) * our_seconds)
        curve.append(run.evaluate())
        progress(f"recipe: {curve[-1]['bits']:,.0f} bits after {run.seconds:.0f} s, {run.steps} steps")
    parameters = sum(p.numel() for p in run.model.parameters())
    embeddings = 2 * VOCAB_SIZE * run.spec.model.hidden_size
    sizes = {"parameters": parameters, "non_embedding": parameters - embeddings}
    arrived = None
    if curve[-1]["bits"] >= goal_bits:
        before, after = curve[-2:]
        share = (goal_bits - before["bits"]) / (after["bits"] - before["bits"])
        arrived = before["seconds"] + share * (after["seconds"] - before["seconds"])
    return {**sizes, "arrived_s": arrived, "curve": curve}


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Train our trial, the recipe, and our trial again, each in a separate process with one thread."""
    where, goal = machine(), milestone_bits()

    def train_ours() -> dict[str, float]:
        chosen = ("--exposures", str(options.exposures), *(f"--set={override}" for override in options.set))
        run = child(__file__, 1, "--side", "ours", *chosen)
        progress(f"ours: {run['bits']:,.0f} of {goal:,.0f} bits after {run['seconds']:.1f} s")
        return run

    runs = [train_ours()]
    if runs[0]["bits"] < goal:
        raise SystemExit(f"ours ends with {runs[0]['bits']:,.0f} bits, below the milestone; raise --exposures")
    budget = ("--budget-factor", str(options.budget_factor), "--our-seconds", str(runs[0]["seconds"]))
    theirs = child(__file__, 1, "--side", "recipe", *budget)
    runs.append(train_ours())
    seconds = statistics.median(run["seconds"] for run in runs)
    spent = theirs["arrived_s"] or theirs["curve"][-1]["seconds"]
    found = {"machine": where, "milestone_bits": goal, "target": TARGET, "ours": runs, "recipe": theirs}
    return found | {"our_seconds": seconds, "ratio": spent / seconds, "arrived": theirs["arrived_s"] is not None}


def described(found: dict[str, Any]) -> str:
    """The result as text with tables."""
    ours, theirs = found["ours"][0], found["recipe"]
    last = theirs["curve"][-1]
    spent = theirs["arrived_s"] or last["seconds"]
    rows = [
        ("ours", ours["parameters"], ours["non_embedding"], found["our_seconds"], ours["exposures"], ours["bits"]),
        ("recipe", theirs["parameters"], theirs["non_embedding"], spent, last["exposures"], last["bits"]),
    ]
    header = ("", "parameters", "without embeddings", "seconds", "exposures", "enumerate bits")
    curve = [(p["seconds"], p["steps"], p["exposures"], p["bits"]) for p in theirs["curve"]]
    ratio = f"{'' if found['arrived'] else '> '}{found['ratio']:.1f}"
    return "\n\n".join(
        (
            f"Milestone: {found['milestone_bits']:,.0f} bits. Ratio of times: {ratio} (target >= {TARGET:g})",
            table(header, rows),
            "The recipe's curve:",
            table(("seconds", "steps", "exposures", "enumerate bits"), curve),
        )
    )


def main() -> None:
    """Measure both sides, and print the ratio and its target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exposures", type=float, default=95.0, help="length of our trial")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override for our trial")
    parser.add_argument(
        "--budget-factor", type=float, default=20.0, help="limit of the recipe in multiples of our time"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=("ours", "recipe"), help=argparse.SUPPRESS)
    parser.add_argument("--our-seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        set_threads(1)
        if options.side == "ours":
            print(json.dumps(ours(options.exposures, options.set)))
        else:
            print(json.dumps(recipe(milestone_bits(), options.our_seconds, options.budget_factor)))
        return
    found = compare(options)
    show(found, described(found), as_json=options.json)


if __name__ == "__main__":
    main()
