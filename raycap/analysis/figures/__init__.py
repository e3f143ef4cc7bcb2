"""The figures of a report: functions from an analysis to a matplotlib Figure. None of them writes files."""
