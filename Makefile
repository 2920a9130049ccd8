# The doors to the checks; see CONTRIBUTING.md.

.PHONY: quick check all heavy site lint layers types quick-tests

quick: # needs the virtual environment of CONTRIBUTING.md
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target quick-tests types layers lint

lint:
	ruff check .
	ruff format --check .

layers:
	lint-imports

types:
	mypy

quick-tests:
	pytest -q -n 0 tests/quick

check: # as the README has it
	pip install -e '.[test]' -c constraints.txt && pytest

all:
	.ci/run

heavy:
	.ci/heavy

site: # of docs/, into site/; needs the extra [docs]
	sphinx-build -W --keep-going -q -b html docs site
