"""The machine that a command runs on: search path, memory and CPUs, home, temporary folders and limits."""
