"""The commands of raycap, by topic; cli.py puts them together."""
