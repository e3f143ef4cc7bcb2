"""Analysis of stored results: capacities, laws, figures and reports, with NumPy, SciPy, pandas and Matplotlib only."""
