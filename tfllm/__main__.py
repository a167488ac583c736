"""`python -m tfllm`."""

import sys

from tfllm.cli.main import main

sys.exit(main())
