"""The table of runtimes in the documentation."""

KINDS = ("float32", "int8")
# Kernels of other versions add up in another order: a step of int8 is 1/127 of the largest value.
TOLERANCES = {"float32": 1e-5, "int8": 0.05}
START = "<!-- The table below is written by make test-runtimes. -->"
END = "<!-- End of the table. -->"
HEADER = (
    "| runtime | float32: right, largest difference | int8: right, largest difference | errors |",
    "|---|---|---|---|",
)


def is_right(row):
    """Returns whether a file took the expected paths and gave the expected outputs."""
    if "error" in row:
        return False
    return row["paths"] == 0 and row["difference"] <= TOLERANCES[_kind(row)]


def row_of(runtime, results):
    """Returns a row of the table.

    Args:
        runtime: `Runtime`.
        results: dict of the rows of its files, or the reason why there are none.
    """
    if isinstance(results, str):
        return f"| {runtime.name} | - | - | {results} |"
    cells = []
    for kind in KINDS:
        rows = [row for row in results.values() if _kind(row) == kind]
        differences = [row["difference"] for row in rows if "error" not in row]
        largest = f", {max(differences):.1g}" if differences else ""
        cells.append(f"{sum(map(is_right, rows))} of {len(rows)}{largest}")
    errors = sorted({row["error"] for row in results.values() if "error" in row})
    return f"| {runtime.name} | {' | '.join(cells)} | {'; '.join(errors) or 'none'} |"


def _kind(row):
    return row["file"].split("-")[0]


def write_table(page, rows):
    """Writes rows between the two marks of a page."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(END)
    table = "\n".join((START, "", *HEADER, *rows, "", END))
    page.write_text(before + table + after, encoding="utf-8")
