"""Which mix holds from which step on, and when to look whether training has learned enough. No torch here.

What is looked at are sums over all workers, so that all of them decide the same at the same step.
"""

from dataclasses import dataclass, field

from raycap.facts.order import Mix
from raycap.spec import LossBelow
from raycap.tokens.training_data import TrainingData

LOSS_WINDOW_STEPS = 100
"""A phase that ends by its loss is looked at this often, over the steps in between."""


LOSS_UNIT_BITS = 2.0**-20
"""Training losses are summed in whole numbers of this, so that sums are the same wherever training paused or went on."""


@dataclass
class CurriculumState:
    """How far a trial has come in its curriculum; plain numbers, kept in checkpoints."""

    starts: list[int] = field(default_factory=lambda: [0])
    """The step at which each phase began or is known to begin; the questions' own mix counts as the last phase."""
    window_loss_units: int = 0
    window_texts: int = 0
    mean_before_bits: float | None = None
    """Mean loss over the window before this one."""
    stopped: bool = False
    """On a plateau."""


class Curriculum:
    """Decides over a Course."""

    def __init__(self, data: TrainingData, course: CurriculumState) -> None:
        training = data.spec.training
        self.course, self._training = course, training
        self._shares = [*map(data.shares, training.curriculum), data.shares()]
        self._rates = [data.rates(shares) for shares in self._shares]
        self._plateau_steps = (
            max(1, round(training.stop.window_exposures / self._rates[-1].exposures / training.batch_size))
            if training.stop
            else 0
        )
        self._begin_known_phases()

    def _begin_known_phases(self) -> None:
        """Phases that end by length have an end from the start."""
        starts, phases = self.course.starts, self._training.curriculum
        while len(starts) <= len(phases):
            place = len(starts) - 1
            until = phases[place].until
            if isinstance(until, LossBelow):
                return
            starts.append(starts[place] + self._rates[place].num_steps(until, self._training.batch_size))

    @property
    def mixes(self) -> tuple[Mix, ...]:
        """All that are known."""
        return tuple(map(Mix, self.course.starts, self._shares))

    def phase(self, step: int) -> int:
        """Phases that have ended after `step` steps."""
        return sum(start <= step for start in self.course.starts) - 1

    @property
    def _watched_phase(self) -> int:
        return len(self.course.starts) - 1

    def watched_steps(self, num_steps: int) -> set[int]:
        """Steps after which to call `watch`, as far as is known now."""
        in_phase = self._watched_phase < len(self._training.curriculum)
        every = LOSS_WINDOW_STEPS if in_phase else self._plateau_steps
        return set(range(self.course.starts[-1] + every, num_steps + 1, every)) if every else set()

    def add(self, step: int, loss_sum_units: int, num_texts: int) -> None:
        """Count what was trained up to `step` since the pause before."""
        if step > self.course.starts[-1]:
            self.course.window_loss_units += loss_sum_units
            self.course.window_texts += num_texts

    def watch(self, step: int) -> bool:
        """Look at the window that ends at a watched step; whether the next phase begins here. May set `stopped`."""
        course, phases = self.course, self._training.curriculum
        mean = course.window_loss_units * LOSS_UNIT_BITS / course.window_texts
        course.window_loss_units, course.window_texts = 0, 0
        if self._watched_phase < len(phases):
            until = phases[self._watched_phase].until
            assert isinstance(until, LossBelow)
            if mean >= until.loss_below_bits:
                return False
            course.starts.append(step)
            self._begin_known_phases()
            return True
        assert self._training.stop is not None
        before, course.mean_before_bits = course.mean_before_bits, mean
        course.stopped = before is not None and before - mean < self._training.stop.min_improvement * before
        return False
