"""Execution of the trials of a sweep on Ray. No other package imports ray."""
