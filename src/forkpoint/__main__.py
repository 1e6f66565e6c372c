"""``python -m forkpoint``, for torchrun and for machines without the script on their path."""

from forkpoint.cli.main import main

if __name__ == "__main__":
    main()
