"""The rows of a soak, from which a soak that was stopped goes on."""

import json
import pathlib


class Results:
    """The rows of one part of a soak, which are written after each of them.

    Args:
        path: Path of the JSON file. Rows of an earlier start are read from it.
        settings: Dict that JSON can hold, such as the seed.

    Raises:
        ValueError: If the rows of the file were made with other settings.
    """

    def __init__(self, path, settings):
        self.path, self.settings, self.rows = pathlib.Path(path), settings, []
        if not self.path.exists():
            return
        before = json.loads(self.path.read_text())
        if before["settings"] != settings:
            raise ValueError(
                f"{self.path} was made with {_shown(before['settings'])}: use the same values or "
                f"another folder. Received: {_shown(settings)}"
            )
        self.rows = before["rows"]

    @staticmethod
    def read(path):
        """Returns the rows of a file."""
        return json.loads(pathlib.Path(path).read_text())["rows"]

    def find(self, part, subject, index):
        """Returns the row of a round, or None if it was not run."""
        key = part, subject, index
        found = (row for row in self.rows if (row["part"], row["subject"], row["round"]) == key)
        return next(found, None)

    def add(self, row):
        """Keeps a row, prints it, and writes the file."""
        from keras_dsnet.utils.atomic_file import atomic_file

        key = row["part"], row["subject"], row["round"]
        others = [old for old in self.rows if (old["part"], old["subject"], old["round"]) != key]
        self.rows = [*others, row]
        with atomic_file(self.path) as file:
            json.dump({"settings": self.settings, "rows": self.rows}, file, indent=1)
        state = "; ".join(row["problems"]) or "as expected"
        which = f"round {row['round'] + 1}" if row["round"] >= 0 else "without a kill"
        print(f"{row['part']}, {row['subject']}, {which}: {state}", flush=True)


def summary(rows):
    """Returns one row for each subject: rounds, counts and problems.

    Args:
        rows: List of dicts with "part", "subject", "round" and "problems". Their numbers named in
            `COUNTS` are added, and of those named in `LARGEST` the largest counts.
    """
    table = {}
    for row in rows:
        key = row["part"], row["subject"]
        total = table.setdefault(
            key, {"part": row["part"], "subject": row["subject"], "rounds": 0, "problems": 0}
        )
        total["rounds"] += row["round"] >= 0
        total["problems"] += len(row["problems"])
        for name in COUNTS:
            if name in row:
                total[name] = total.get(name, 0) + row[name]
        for name in LARGEST:
            if name in row:
                total[name] = max(total.get(name, 0), row[name])
    return list(table.values())


COUNTS = ("kills", "in_write", "failed_writes")
LARGEST = (
    *("predictions", "difference", "other_paths", "new_traces", "double_traces"),
    *("bytes_per_prediction", "memory_growth", "seconds_to_end"),
)
_TITLES = {
    "in_write": "of which in a write",
    "failed_writes": "writes that failed",
    "difference": "largest difference",
    "other_paths": "other paths",
    "new_traces": "new traces",
    "double_traces": "traces made twice",
    "bytes_per_prediction": "bytes kept per prediction",
    "memory_growth": "memory growth (MiB)",
    "seconds_to_end": "longest wait for the others (s)",
}


def format_markdown(rows, command):
    """Returns the summary as Markdown, a table for each part."""
    lines = ["```", command, "```", ""]
    for part in dict.fromkeys(row["part"] for row in rows):
        own = [row for row in rows if row["part"] == part]
        names = [name for name in own[0] if name not in ("part", "problems")]
        names += ["problems"]
        titles = [_TITLES.get(name, name) for name in names]
        lines += [f"## {part}", "", "| " + " | ".join(titles) + " |", "|---" * len(names) + "|"]
        lines += ["| " + " | ".join(_text(row.get(name)) for name in names) + " |" for row in own]
        lines.append("")
    return "\n".join(lines)


def _text(value):
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _shown(settings):
    return ", ".join(f"--{name}={value}" for name, value in settings.items())
