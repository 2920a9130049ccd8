"""`python -m lmsearch`, where the command is not on the path."""

from lmsearch.cli.main import main

if __name__ == "__main__":
    main()
