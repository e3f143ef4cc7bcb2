"""Questions per second of `run_trial` against transformers.Trainer on the same rows with the same model.

    python tests/benchmarks/training.py [--sizes demo 1M] [--threads 1 2] [--repeats 3] [--seconds 12] [--json]

Needs accelerate (`pip install -e '.[bench]'`), which Trainer requires. Both sides train on the demo's one-hop questions in
the same order, one question per row, with the same Llama, batch size, fused AdamW, schedule, clipping and threads, in fp32.
Trainer is configured to be as fast as possible on a CPU: batches are slices of tensors prepared in advance, padded to the
longest row of the batch, without an attention mask (right padding needs none under causal attention); sdpa, no key-value
cache; no logging, evaluation, saving or NaN checks. raycap computes logits only at measured tokens, and shared prefixes
once; Trainer has no option for either.

Only training steps are timed: ours by the trial's training time, Trainer's from the start of its first step to the end of
its last. Each run is a separate process with a short probe as warm-up, the sides in turns (A B A B ...); medians. The ratio
of the fastest runs of both sides is printed as well, because other programs on the machine disturb it less.
Targets: 4 times as fast at the size of the demo, twice as fast at 1M parameters.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from common import child, machine, medians, our_steps, planned, progress, set_threads, show, speed, table

if TYPE_CHECKING:
    from raycap.spec import TrialSpec

TARGETS = {"demo": 4.0, "1M": 2.0, "5M": None}
IGNORED = -100
"""Label of a token that is not measured."""


def trainer_steps(size: str, num_steps: int) -> dict[str, float]:
    """Train `num_steps` steps of a size with transformers.Trainer."""
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging

    class Clock(TrainerCallback):
        """Records the start of the first step and the end of the last."""

        began = ended = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if not state.global_step:
                self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            self.ended = time.perf_counter()

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    trial = planned(size)
    spec = trial.spec
    batches, vocab_size, num_tokens = trained_batches(spec, num_steps)
    model = transformers_model(spec, vocab_size)
    assert model.num_parameters() == trial.parameters.total
    optimizer, batch_size, clock = spec.training.optimizer, spec.training.batch_size, Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=num_steps,
            per_device_train_batch_size=batch_size,
            use_cpu=True,
            optim="adamw_torch_fused",
            learning_rate=optimizer.lr,
            adam_beta1=optimizer.betas[0],
            adam_beta2=optimizer.betas[1],
            adam_epsilon=1e-8,
            weight_decay=optimizer.weight_decay.matrices,
            max_grad_norm=optimizer.grad_clip,
            lr_scheduler_type=str(optimizer.schedule),
            warmup_steps=min(optimizer.warmup_steps, num_steps // 2),
            train_sampling_strategy="sequential",
            dataloader_num_workers=0,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            average_tokens_across_devices=False,
            logging_strategy="no",
            logging_nan_inf_filter=False,
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=batches,
            data_collator=lambda batch: batch,  # `Batches.__getitems__` returns whole batches
            callbacks=[clock],
        )
        trainer.model_accepts_loss_kwargs = False  # otherwise Trainer counts the labels of every batch
        trainer.train()
    seconds = clock.ended - clock.began
    return {
        "questions_per_s": num_steps * batch_size / seconds,
        "tokens_per_s": num_tokens / seconds,
        "steps": num_steps,
        "seconds": seconds,
    }


def trained_batches(spec: TrialSpec, num_steps: int) -> tuple[Any, int, int]:
    """Rows of a trial's first steps as a dataset, the size of the vocabulary, and the number of tokens without padding."""
    import torch
    from torch.utils.data import Dataset

    from raycap.facts.build import populations_of
    from raycap.facts.order import Mix
    from raycap.tokens.rows import RowSource
    from raycap.tokens.training_data import TrainingData

    data = TrainingData.of(spec, populations_of(spec))
    order = data.order((Mix(0, data.shares()),))
    made, num_tokens = [], 0
    for rows in RowSource(data.composers, order, num_steps, 0, 1).rows_from(0):
        num_tokens += int(rows.lengths.sum())
        input_ids = torch.from_numpy(rows.input_ids[:, : rows.lengths.max()].astype(np.int64))
        measured = torch.from_numpy(rows.labels[:, : rows.lengths.max()] > 0)
        made.append({"input_ids": input_ids, "labels": input_ids.masked_fill(~measured, IGNORED)})

    class Batches(Dataset):
        """Questions in training order; a list of indices selects the prepared batch of the first."""

        def __len__(self) -> int:
            return len(made) * spec.training.batch_size

        def __getitem__(self, index: int) -> dict[str, Any]:
            step, row = divmod(index, spec.training.batch_size)
            return {name: tensor[row] for name, tensor in made[step].items()}

        def __getitems__(self, indices: list[int]) -> dict[str, Any]:
            return made[indices[0] // spec.training.batch_size]

    return Batches(), data.vocab_size, num_tokens


def transformers_model(spec: TrialSpec, vocab_size: int) -> Any:
    """Build a LlamaForCausalLM with the shape of a trial's model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = spec.model
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=4 * model.hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.hidden_size // model.head_size,
        num_key_value_heads=model.hidden_size // model.head_size,
        head_dim=model.head_size,
        tie_word_embeddings=model.tie_embeddings,
        use_cache=False,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def compare(size: str, threads: int, repeats: int, seconds: float) -> dict[str, Any]:
    """Measure both sides in turns, each run in a separate process."""
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "trainer": []}
    for repeat in range(repeats):
        for side, found in runs.items():
            arguments = ("--side", side, "--sizes", size, "--threads", str(threads), "--seconds", str(seconds))
            found.append(child(__file__, threads, *arguments))
            rate = found[-1]["questions_per_s"]
            progress(f"{size}, {threads} thread(s), run {repeat + 1}/{repeats}: {side} {rate:,.0f} questions/s")
    ours, trainer = medians(runs["ours"]), medians(runs["trainer"])
    fastest = {side: max(run["questions_per_s"] for run in found) for side, found in runs.items()}
    return {
        "size": size,
        "threads": threads,
        "ours": ours,
        "trainer": trainer,
        "ratio": ours["questions_per_s"] / trainer["questions_per_s"],
        "ratio_of_fastest": fastest["ours"] / fastest["trainer"],
        "target": TARGETS[size],
        "runs": runs,
    }


def main() -> None:
    """Measure both sides at each size and number of threads, and print the ratios and targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=TARGETS, default=["demo", "1M"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0, help="about how long each run trains")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=("ours", "trainer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        set_threads(options.threads[0])
        (size,) = options.sizes
        train = our_steps if options.side == "ours" else trainer_steps
        print(json.dumps(speed(size, options.seconds, lambda num_steps: train(size, num_steps))))
        return
    found: dict[str, Any] = {"machine": machine(), "results": []}
    for size in options.sizes:
        for threads in options.threads:
            found["results"].append(compare(size, threads, options.repeats, options.seconds))
    rows = [
        (
            row["size"],
            row["threads"],
            row["ours"]["questions_per_s"],
            row["trainer"]["questions_per_s"],
            f"{row['ratio']:.2f}",
            f"{row['ratio_of_fastest']:.2f}",
            f">= {row['target']:g}" if row["target"] else "",
        )
        for row in found["results"]
    ]
    header = ("size", "threads", "run_trial, questions/s", "Trainer, questions/s", "ratio", "of fastest", "target")
    show(found, table(header, rows), as_json=options.json)


if __name__ == "__main__":
    main()
