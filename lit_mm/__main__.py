"""`python -m lit_mm`."""

import os
import sys

import lit_mm

if __name__ == "__main__":
    # `-m` puts the current folder first, where a file of the user's, such as timm.py, would hide a package. A clone
    # stays first, so that processes that it starts import the clone and not an installed version
    if sys.path[0] in ("", os.getcwd()) and os.path.dirname(os.path.dirname(lit_mm.__file__)) != os.getcwd():
        sys.path.append(sys.path.pop(0))

    from lit_mm.cli import run

    run()
