import json
import subprocess
import sys

address = sys.argv[1]
tests = []


def check(name, points, arguments, expected):
    program = ["python3", "/autograder/submission/client.py", address, *arguments]
    try:
        ran = subprocess.run(program, capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:
        ran = subprocess.CompletedProcess(program, 1, "", "took longer than 10 seconds")
    score = points if ran.returncode == 0 and ran.stdout.strip() == expected else 0
    tests.append({"name": name, "score": score, "max_score": points, "output": ran.stdout + ran.stderr})


check("one apple", 2, ["apple"], "3")
check("fruit salad", 2, ["apple", "pear", "pear"], "11")
check("no bananas", 1, ["banana"], "sold out")
counted = subprocess.run(["redis-cli", "-s", "/run/redis/shop.sock", "GET", "requests"], capture_output=True, text=True)
asked = int(counted.stdout.strip() or 0)
tests.append({"name": "asked the shop", "score": 1 if asked >= 5 else 0, "max_score": 1, "output": f"{asked} requests"})
with open("/autograder/results/results.json", "w") as results:
    json.dump({"tests": tests}, results)
