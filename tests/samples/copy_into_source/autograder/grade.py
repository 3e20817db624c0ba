"""Grades area() of shapes.py and, where there is one, volume() of extra.py."""

import json
import math

tests = []


def check(name, points, function):
    try:
        correct = function()
    except Exception as error:
        tests.append({"name": name, "score": 0, "max_score": points, "output": repr(error)})
    else:
        tests.append({"name": name, "score": points if correct else 0, "max_score": points})


def area(*arguments):
    import shapes

    return shapes.area(*arguments)


def volume(*arguments):
    import extra

    return extra.volume(*arguments)


check("square", 3, lambda: area("square", 3) == 9)
check("rectangle", 3, lambda: area("rectangle", 2, 5) == 10)
check("circle", 4, lambda: math.isclose(area("circle", 1), math.pi))
check("extra credit", 0, lambda: volume("cube", 2) == 8)
bonus = 2 if "output" not in tests[-1] else 0
with open("/autograder/results/results.json", "w") as results:
    json.dump({"score": sum(test["score"] for test in tests) + bonus, "tests": tests}, results)
