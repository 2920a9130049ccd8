# The doors to the checks; see CONTRIBUTING.md.

.PHONY: quick check all heavy

quick: # needs the virtual environment of CONTRIBUTING.md
	ruff check .
	ruff format --check .
	lint-imports
	mypy
	pytest -q tests/quick

check: # as the README has it
	pip install -e '.[test]' -c constraints.txt && pytest

all:
	.ci/run

heavy:
	.ci/heavy
