"""`python -m hybridlm` is the command `hybridlm`."""

import sys

from hybridlm.cli import main

sys.exit(main())
