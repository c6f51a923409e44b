"""What the paper's tables ask, answered with small models: run with ``python -m experiments.<name>``."""
