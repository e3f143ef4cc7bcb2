"""Planning of sweeps: resolved trials, stored states, stacks, and estimates; torch is imported only to time steps."""
