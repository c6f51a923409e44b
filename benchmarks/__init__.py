"""Every speed and memory claim of the project is a row here: ``pytest benchmarks/ --benchmark-only``."""
