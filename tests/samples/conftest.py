"""Keeps pytest out of the samples: what staff and students wrote is run in containers, never collected here."""

collect_ignore_glob = ["*/autograder/*", "*/submissions/*"]
