# The checks that every change must pass. `make` alone lists them.
PYTHON ?= .venv/bin/python

.PHONY: help check format lint types layers audit test reference screenshots

help:
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

check: lint types layers audit ## lint, types, layers and advisories, without changing a file

format: ## rewrite files in the house format
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

lint: ## ruff
	$(PYTHON) -m ruff check .

types: ## mypy
	$(PYTHON) -m mypy

layers: ## who may import whom, and which word is at home where
	$(PYTHON) -m pytest -q tests/test_layers.py

audit: ## advisories for the installed packages; says so where no index answers
	$(PYTHON) tests/dependency_audit.py

test: ## the whole suite
	$(PYTHON) launch.py test

reference: ## the reference pages in docs/reference, from the code
	$(PYTHON) docs/reference.py

screenshots: ## the images of the README
	$(PYTHON) docs/screenshots.py
