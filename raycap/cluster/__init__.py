"""Where it runs: the only code that imports ray."""
