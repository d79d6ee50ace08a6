"""What the package is built and measured with: the embedded model, tables and benchmarks."""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # advice on packages not used here
