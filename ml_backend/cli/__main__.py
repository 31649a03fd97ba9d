"""``python -m ml_backend.cli``: how our own processes start each other."""

from ml_backend.cli.main import main

if __name__ == "__main__":
    main()
