"""Terminal output: the plan, the progress table, failures, and the status of a sweep."""
