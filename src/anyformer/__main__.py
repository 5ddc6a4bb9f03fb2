"""`python -m anyformer` is `anyformer`."""

import sys

from anyformer.cli import main

sys.exit(main())
