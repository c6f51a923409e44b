"""``python -m jair``, which `torchrun -m jair` starts too."""

from jair.cli import main

main()
