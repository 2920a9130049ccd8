"""The version of lmsearch; it rises with every format of what is stored (`formats.py`)."""

__version__ = "0.4.0"
