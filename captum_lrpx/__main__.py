"""``python -m captum_lrpx`` is the command line."""

import sys

from captum_lrpx.cli import main

sys.exit(main())
