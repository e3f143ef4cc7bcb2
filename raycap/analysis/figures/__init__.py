"""Analysis -> Figure: nothing is saved here, and no global style is touched."""
