"""What this package does on a GPU, in minutes: ``python -m benchmarks.gpu``, ``make bench-gpu``."""

import os
import sys

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # read as torch starts
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers.utils.logging import disable_progress_bar

from benchmarks.gpu.run import main

if __name__ == "__main__":
    disable_progress_bar()
    sys.exit(main())
