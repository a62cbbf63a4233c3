"""``python -m agentcredits.cli``: the command line where the ``agentcredits`` script is not on the path."""

import sys

from agentcredits.cli import main

sys.exit(main())
