"""Plans of sweeps: resolved trials, their state, their stacks, and estimates of their cost. torch only where it is timed."""
