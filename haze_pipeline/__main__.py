"""`python -m haze_pipeline` is the command `haze-pipeline`."""

from .cli import main


if __name__ == "__main__":
    main()
