"""Tables and lines that people see in a terminal."""
