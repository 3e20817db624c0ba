# GreenGrader's commands; `make` alone prints them. All of them work from a fresh checkout.
PYTHON ?= python3
export PYTHON

STACK := .venv/bin/python deploy/stack.py

.DEFAULT_GOAL := help
.PHONY: help install run up down status test lint bench

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

run: install  ## everything at once: up, then a sample submission on its way to its graded result
	@$(STACK) run

up: install  ## start the embedded stack in the background: Postgres, Mosquitto, Docker, the daemons, one worker
	@$(STACK) up

down: install  ## stop the embedded stack; its data stays
	@$(STACK) down

status: install  ## show what of the embedded stack runs
	@$(STACK) status

test: install  ## run the tests; ARGS="-k name" goes to pytest
	-@deploy/install-cluster-tests.sh
	@$(STACK) with-engine .venv/bin/pytest $(ARGS)

lint: install  ## ruff and mypy
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy --strict greengrader *.py deploy

bench: install  ## measure speed and memory, each beside its reference in the same run
	@$(STACK) with-engine .venv/bin/python -m tests.bench $(ARGS)

install:  ## install what this machine lacks; a part of every other command
	@deploy/install.sh
