"""Training with Ray's public API alone: new processes for every trial, and after every failure.

Works with every version of Ray that pyproject.toml allows. `worker_reuse` is the faster alternative. Results are bit-equal,
because neither takes part in the training itself.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import ray.train
from ray.train.v2.api.config import FailureConfig, RunConfig
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.torch.torch_trainer import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from raycap.cluster.retries import RetryRule
from raycap.cluster.trial_queue import PLACED


def fit(train: Callable[[dict[str, Any]], Any], run_config: RunConfig, rule: RetryRule, **options: Any) -> Any:
    """Train with a `TorchTrainer`, which is started again after failures as a rule decides.

    Args:
        train: Function of the workers, which first calls `report_start`.
        run_config: Configuration of the run; its callbacks and failure_config are replaced.
        rule: Decides whether the training starts again after an error.
        **options: Other arguments of `TorchTrainer`.

    Returns:
        The `ray.train.Result`.

    Raises:
        TrainingFailedError: The rule decided against a retry.
    """
    # The rule decides about every failure, so Ray itself retries none.
    once = FailureConfig(max_failures=0, controller_failure_limit=0)
    run_config = dataclasses.replace(run_config, callbacks=[TuneReportCallback()], failure_config=once)
    while True:
        try:
            return TorchTrainer(train, run_config=run_config, **options).fit()
        except TrainingFailedError as error:
            if not rule.should_retry(error):
                raise


def report_start() -> None:
    """Report to Tune that the workers of a trial have started. Called by every worker; waits for all of them."""
    ray.train.report({PLACED: True})
