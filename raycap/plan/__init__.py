"""Planning of sweeps: resolved trials, stored states, stacks, and estimates of cost; torch is imported to time steps only."""
