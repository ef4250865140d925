"""The version of the package, and the versions stored in a record."""

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Versions of this package, torch, transformers and captum."""
    from importlib.metadata import version  # noqa: PLC0415 - slow, and only records need it

    others = {name: version(name) for name in ("torch", "transformers", "captum")}
    return {"captum_lrpx": __version__, **others}
