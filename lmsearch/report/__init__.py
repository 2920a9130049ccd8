"""The report: figures, pages and files for a browser, drawn from what `lmsearch.results` reads and judges.

In a notebook: `results = read("my-study", "sqlite:///runs/lmsearch.db")`, `figures.make_figure(results, "curves")`.
"""
