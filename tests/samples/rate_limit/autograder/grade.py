"""Prints the results for the program SUBMISSION, which runs in a process of its own."""

import json
import subprocess
import sys

tests = []
for index, expected in ((1, 1), (2, 1), (10, 55), (90, 2880067194370816120)):
    try:
        ran = subprocess.run(["python3", sys.argv[1], str(index)], capture_output=True, text=True, timeout=3)
        output, correct = ran.stdout + ran.stderr, ran.stdout.strip() == str(expected)
    except subprocess.TimeoutExpired:
        output, correct = "took longer than 3 seconds", False
    tests.append({"name": f"fibonacci({index})", "score": 5 * correct, "max_score": 5, "output": output})
json.dump({"tests": tests, "extra_data": {"limited": False}}, sys.stdout)
