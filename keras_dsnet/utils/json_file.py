"""Files of JSON that a user hands in."""

import json
import pathlib

from keras_dsnet.utils.errors import UserError


def read_json(path, what):
    """Returns what a JSON file holds.

    Args:
        path: of the file.
        what: the kind of file, for messages, such as "latency table".

    Raises:
        OSError: it cannot be opened.
        UserError: it is not JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_bytes())
    # UnicodeDecodeError and JSONDecodeError alike; and brackets in brackets without end.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} {path} is not JSON: {error}") from error
