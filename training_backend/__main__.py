"""``python -m training_backend`` is the ``med3dssl`` command."""

import sys

from training_backend.cli import main

if __name__ == "__main__":
    sys.exit(main())
