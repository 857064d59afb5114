"""One folder per `evaluate` module, as it stands in its Space: thin over `midb.judging`."""

from pathlib import Path


def path(name: str) -> str:
    """Where a module of ours is installed, for `evaluate.load(path("pairwise_judge"))`, which then needs no network.

    Raises:
        ValueError: There is no such module.
    """
    here = Path(__file__).parent
    names = sorted(each.name for each in here.iterdir() if (each / f"{each.name}.py").is_file())
    if name not in names:
        raise ValueError(f"there is no metric {name!r}; midb has {' and '.join(names)}")
    return str(here / name)
