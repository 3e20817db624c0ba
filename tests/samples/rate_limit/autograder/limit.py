"""Writes the latest earlier score to RESULTS if there were three submissions within a day; else exit status 3."""

import json
import sys
from datetime import datetime, timedelta

METADATA, RESULTS = sys.argv[1:]
with open(METADATA) as file:
    metadata = json.load(file)
now = datetime.fromisoformat(metadata["created_at"])
earlier = [
    submission
    for submission in metadata["previous_submissions"]
    if now - datetime.fromisoformat(submission["submission_time"]) < timedelta(days=1)
    and not submission["autograder_error"]
]
if len(earlier) < 3:
    sys.exit(3)
with open(RESULTS, "w") as file:
    json.dump({
        "score": float(earlier[-1]["score"]),
        "output": f"This is submission {len(earlier) + 1} within 24 hours; three are graded. Your last score stays.",
        "extra_data": {"limited": True, "assignment": metadata["assignment"]["title"]},
    }, file)
