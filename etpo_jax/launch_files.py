"""Location of the flagfiles that come with the program."""

from pathlib import Path


def launch_folder() -> Path:
    """Returns the folder `launch`: inside the package when installed, else in the checkout."""
    installed = Path(__file__).parent / "launch"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "launch"
