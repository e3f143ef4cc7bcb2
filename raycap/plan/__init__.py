"""Planning of sweeps: resolved trials, their stored state, stacks, and estimates of cost. torch is imported to time steps."""
