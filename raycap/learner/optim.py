"""Optimizers and schedules; the learning rate is a pure function of the step."""

import math

import torch
from torch import nn

from raycap.spec import AdamWSpec, Schedule


def build(spec: AdamWSpec, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices and none on norm gains."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    gains = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, fused=True)


def learning_rate(spec: AdamWSpec, step: int, num_steps: int) -> float:
    """Learning rate of `step` (from 0): linear warm-up to lr, then linear or cosine decay to 0 at num_steps, or lr."""
    warmup_steps = min(spec.warmup_steps, num_steps // 2)
    if step < warmup_steps:
        return spec.lr * (step + 1) / warmup_steps
    remaining = (num_steps - step) / (num_steps - warmup_steps)  # 1 after warm-up, towards 0 at the end
    match spec.schedule:
        case Schedule.LINEAR:
            return spec.lr * remaining
        case Schedule.COSINE:
            return spec.lr * (1 - math.cos(math.pi * remaining)) / 2
        case Schedule.CONSTANT:
            return spec.lr
