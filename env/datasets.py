"""Tables by name, and the program that lists and fetches them (`python -m env.datasets`)."""

from env.tables.loading import cache_folder, fetch, load_dataset
from env.tables.table import Dataset

__all__ = ["Dataset", "cache_folder", "fetch", "load_dataset"]

if __name__ == "__main__":
    from env.tables import program

    program.run()
