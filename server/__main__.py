"""`python -P -m headrace.server`: the same as `headrace serve`."""

import sys

from headrace.server.app import main

sys.exit(main())
