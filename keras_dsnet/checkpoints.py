"""The deprecated name of `keras_dsnet.weights`."""

import sys
import warnings

from keras_dsnet.weights import *  # noqa: F403
from keras_dsnet.weights import __all__  # noqa: F401

if __name__ == "__main__":
    from keras_dsnet.weights.__main__ import main

    print(
        "warning: `python -m keras_dsnet.checkpoints` is deprecated: "
        "use `python -m keras_dsnet.weights`",
        file=sys.stderr,
    )
    sys.exit(main())

warnings.warn(
    "keras_dsnet.checkpoints is deprecated: import from keras_dsnet.weights",
    DeprecationWarning,
    stacklevel=2,
)
