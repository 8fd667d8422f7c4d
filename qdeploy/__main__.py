"""`python -m qdeploy`."""

from qdeploy.cli import main

main()
