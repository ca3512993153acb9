"""Output files of a command: refused before the long work if they could not be written, and written in one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from runtimes.errors import BadInput, PlanError


def check_output_files(outputs: Mapping[str, Path | None], bundles: Sequence[Path]) -> None:
    """Refuse output files that could not be written once the long work is done.

    Args:
        outputs: by the option that names each.
        bundles: folders that nothing may be written into.

    Raises:
        BadInput: a file has no name, or its folder does not exist.
        PlanError: a file lies in a bundle, which holds no files but those of its manifest, or two outputs are one file.
    """
    given = {option: path for option, path in outputs.items() if path is not None}
    for option, path in given.items():
        if not path.name:
            raise BadInput(f"expected a file for {option}, got '{path}'; name one")
        if not path.absolute().parent.is_dir():
            raise BadInput(
                f"cannot write {path}: there is no folder {path.parent}; make it first, or give another {option}"
            )
        for folder in bundles:
            if path.resolve().is_relative_to(folder.resolve()):
                raise PlanError(
                    f"{path} lies in the bundle {folder}, whose files are those of its manifest; give another {option}"
                )
    if len({path.resolve() for path in given.values()}) < len(given):
        raise PlanError(f"expected a file each for {' and '.join(given)}, got one for both")


def write_output(path: Path, data: bytes, option: str) -> None:
    """Write a file that `option` names, whole or not at all.

    Raises:
        BadInput: it cannot be written.
    """
    from runtimes.bundle_writing import write_in_one_step

    try:
        write_in_one_step(path, data)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; give another {option}") from error
