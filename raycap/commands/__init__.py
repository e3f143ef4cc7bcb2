"""Commands of the command line, one module per topic; cli.py registers them."""
