"""The notebook of `examples/` runs as it stands."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples/search.ipynb"


@pytest.mark.heavy
def test_the_notebook_runs_and_its_answers_are_there(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="the notebook was not run: pip install '.[test-heavy]'")
    nbclient = pytest.importorskip("nbclient", reason="the notebook was not run: pip install '.[test-heavy]'")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept = [set(output.get("data", {})) for cell in notebook.cells for output in cell.get("outputs", [])]
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type != "stream"]
    made = [set(output["data"]) for output in shown]
    assert made == kept and {"application/vnd.plotly.v1+json"} < set().union(*made)
    assert "<b>default</b>: 16 of 16 trials" in notebook.cells[1].outputs[-1].data["text/html"]
    assert (tmp_path / "runs/default/best-config.json").is_file()
