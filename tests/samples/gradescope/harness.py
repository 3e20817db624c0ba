"""Stands in for Gradescope's own harness inside the forked container: starts run_autograder as that one does.

Exit status: that of run_autograder, 128 + N if signal N ended it.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

AUTOGRADER = Path("/autograder")
TIMEOUT_S = float(os.environ.get("TIMEOUT_SECONDS", "600"))


def main() -> int:
    results = AUTOGRADER / "results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir()
    with (results / "stdout").open("wb") as stdout:
        process = subprocess.Popen(["./run_autograder"], cwd=AUTOGRADER, stdout=stdout, stderr=subprocess.STDOUT)
        try:
            status = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
            late = {"score": 0, "output": f"Timed out after {TIMEOUT_S:g} seconds."}
            (results / "results.json").write_text(json.dumps(late))
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
