"""What was learned: capacities, laws, figures, the report. numpy, scipy, pandas and matplotlib alone."""
