"""What README's table of figures states, measured: `make bench`, or `python -m tests.bench [NAME ...]`."""

import sys
from pathlib import Path

# deploy/ is no package: its modules are imported by name, as the tests do by pytest's `pythonpath`.
sys.path.append(str(Path(__file__).resolve().parents[2] / "deploy"))
