"""The curriculum of a trial: the mix of each phase, and the tests that end a phase or stop on a plateau. Imports no torch.

Tests use losses that are summed over all workers, so all workers take the same decision at the same step
(docs/science.md#curriculum).
"""

from dataclasses import dataclass, field

from raycap.facts.order import Mix
from raycap.spec import LossBelow
from raycap.tokens.training_data import TrainingData

LOSS_WINDOW_STEPS = 100
"""Window over which the loss of a phase is averaged, and the interval of its tests."""

LOSS_UNIT_BITS = 2.0**-20
"""Training losses are summed as integer multiples of this unit, so sums do not depend on when training paused."""


@dataclass
class CurriculumState:
    """Progress of a trial in its curriculum, as saved in checkpoints; the names of the fields are keys of checkpoints."""

    starts: list[int] = field(default_factory=lambda: [0])
    """First step of each phase, as far as known; the mix of `questions` counts as the last phase."""
    window_loss_units: int = 0
    """Sum of losses in the current window, in LOSS_UNIT_BITS."""
    window_texts: int = 0
    """Number of texts in the current window."""
    mean_before_bits: float | None = None
    """Mean loss over the previous window of the plateau test."""
    stopped: bool = False
    """Whether training has stopped on a plateau."""


class Curriculum:
    """Applies the rules of a curriculum to the state of a trial."""

    def __init__(self, data: TrainingData, state: CurriculumState) -> None:
        training = data.spec.training
        self.state, self._training = state, training
        self._shares = [*map(data.shares, training.curriculum), data.shares()]
        self._rates = [data.rates(shares) for shares in self._shares]
        self._plateau_steps = (
            max(1, round(training.stop.window_exposures / self._rates[-1].exposures / training.batch_size))
            if training.stop
            else 0
        )
        self._begin_known_phases()

    def _begin_known_phases(self) -> None:
        """Append the starts of phases up to the first that ends by its loss; a phase with a length has a known end."""
        starts, phases = self.state.starts, self._training.curriculum
        while len(starts) <= len(phases):
            phase = len(starts) - 1
            until = phases[phase].until
            if isinstance(until, LossBelow):
                return
            starts.append(starts[phase] + self._rates[phase].num_steps(until, self._training.batch_size))

    @property
    def mixes(self) -> tuple[Mix, ...]:
        """Mixes of all phases whose first step is known."""
        return tuple(map(Mix, self.state.starts, self._shares))

    def phase(self, step: int) -> int:
        """Return the number of phases that have ended after `step` steps."""
        return sum(start <= step for start in self.state.starts) - 1

    @property
    def _watched_phase(self) -> int:
        return len(self.state.starts) - 1

    def watched_steps(self, num_steps: int) -> set[int]:
        """Return the steps after which to call `watch`, as far as they are known."""
        in_phase = self._watched_phase < len(self._training.curriculum)
        every = LOSS_WINDOW_STEPS if in_phase else self._plateau_steps
        return set(range(self.state.starts[-1] + every, num_steps + 1, every)) if every else set()

    def add(self, step: int, loss_sum_units: int, num_texts: int) -> None:
        """Add losses and texts of the steps between the previous pause and `step` to the window."""
        if step > self.state.starts[-1]:
            self.state.window_loss_units += loss_sum_units
            self.state.window_texts += num_texts

    def watch(self, step: int) -> bool:
        """Test the window that ends at a watched step and begin a new one.

        Returns whether the next phase begins. Sets `stopped` on a plateau.
        """
        state, phases = self.state, self._training.curriculum
        mean = state.window_loss_units * LOSS_UNIT_BITS / state.window_texts
        state.window_loss_units, state.window_texts = 0, 0
        if self._watched_phase < len(phases):
            until = phases[self._watched_phase].until
            assert isinstance(until, LossBelow)
            if mean >= until.loss_below_bits:
                return False
            state.starts.append(step)
            self._begin_known_phases()
            return True
        assert self._training.stop is not None
        previous, state.mean_before_bits = state.mean_before_bits, mean
        state.stopped = previous is not None and previous - mean < self._training.stop.min_improvement * previous
        return False
