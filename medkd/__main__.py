"""``python -m medkd``."""

from medkd.cli import main

if __name__ == "__main__":
    main()
