"""The results per sample as a Parquet file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captum_lrpx.extras import imported
from captum_lrpx.files import write_bytes

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable


def require() -> None:
    """Check the requirements of :func:`write`, before a run whose results it writes.

    Raises:
        ImportError: If pandas or pyarrow is not installed.
    """
    for package in ("pandas", "pyarrow"):
        imported(
            package, "A Parquet file needs pandas and pyarrow: pip install 'captum-lrpx[parquet]'."
        )


def write(path: str | os.PathLike[str], records: Iterable[dict[str, Any]]) -> None:
    """Write records, one per row; the file is written whole or not at all.

    Args:
        path: The file; an existing one is replaced.
        records: The rows, each with the same columns.

    Raises:
        ImportError: If pandas or pyarrow is not installed.
        OSError: If the file cannot be written.
    """
    require()
    import pandas as pd  # noqa: PLC0415

    write_bytes(path, pd.DataFrame(records).to_parquet(engine="pyarrow"))
