"""`python -m llem_operator`."""

import sys

from llem_operator.main import main

sys.exit(main())
