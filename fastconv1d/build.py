"""Compile and load the libraries around `csrc/`: compilers, cache, lock.

A library is built once by torch's `load_inline` and kept as

    cache_dir()/NAME-ARCH-KEY/NAME.so

where KEY hashes everything that the library is made from: sources, flags, compilers, torch and
Python. The file ends in the sha256 of all before it, so that what is loaded as code is known to be
whole; a loader of ELF files never looks there. A build happens aside and is renamed into place, so
the lock only saves work: no failure of it can spoil an entry. Where the cache cannot be used, the
same steps run in a temporary folder of this process.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from . import config

CSRC = Path(__file__).parent / "csrc"
"""The folder of the kernel sources and of the binding."""

BINDING_FLAGS = ("-O1", "-ftree-vectorize", "-fopenmp")
"""Flags of a binding (torch adds the C++ standard of its headers); at::parallel_for is OpenMP. With
-O3 torch's headers take a third longer to build, and a call as long to run."""

CXX_FLAGS = ("-O3", "-fopenmp")
"""Flags of a kernel library of the CPU."""

NATIVE_FLAGS = ("-mcpu=native" if platform.machine() == "aarch64" else "-march=native",)
"""More of a kernel library of the CPU: vectors as wide as those of the machine that runs it."""

NVCC_FLAGS = ("-O3", "-std=c++17", "-lineinfo", "-Xcompiler=-fno-gnu-unique")
"""Flags of a kernel library, beside its `-gencode`."""
# no-gnu-unique: else the static variables of two libraries made from the same header are one.

_USUAL_HOME = Path("/usr/local/cuda")
_DIGEST_SIZE = hashlib.sha256().digest_size
_SLOW_SECONDS = 2.0
_DISK_TROUBLE = (
    "No space left on device",
    "Disk quota exceeded",
    "Read-only file system",
    "failed to map segment",  # a folder mounted noexec
)
_HELP_CXX = "Install g++ (Debian and Ubuntu: apt install g++), or set CXX to a C++ compiler."
_HELP_NVCC = (
    "Install a CUDA toolkit and set CUDA_HOME to its folder, or take the compiler from PyPI: "
    "pip install 'fastconv1d[compiler]'."
)
_HELP_NINJA = "Install it with: pip install ninja."


class BuildError(RuntimeError):
    """A library cannot be built here; the message says why and how to change that."""


@dataclass(frozen=True, slots=True)
class Toolkit:
    """A CUDA toolkit; `version` is the one that its cuda.h states."""

    home: Path
    nvcc: Path
    version: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Compiler:
    """The compilers for one architecture; `toolkit` is None for the CPU."""

    cxx: Path
    toolkit: Toolkit | None = None


@dataclass(frozen=True, slots=True)
class _Library:
    """One library to build: `arch` is 'cpu', 'cuda' (host code that calls CUDA) or as in '90a'."""

    name: str
    source: str
    arch: str

    @property
    def gencode(self) -> str:
        # Host code is for no architecture, but load_inline guesses one where it is told none.
        number = self.arch if self.arch[0].isdigit() else "80"
        return f"-gencode=arch=compute_{number},code=sm_{number}"

    @property
    def cxx_flags(self) -> tuple[str, ...]:
        # The binding shares inline functions with torch, which must be those of any machine.
        if self.is_binding:
            return BINDING_FLAGS
        return CXX_FLAGS + (NATIVE_FLAGS if self.arch == "cpu" else ())

    @property
    def is_binding(self) -> bool:
        return "binding.cpp" in self.source

    @property
    def target(self) -> str:
        return f"sm_{self.arch}" if self.arch[0].isdigit() else self.arch


def arch_of(capability: tuple[int, int]) -> str:
    """The architecture to compile for: '90a' for (9, 0), else the device's own, as '86'."""
    major, minor = capability
    return "90a" if (major, minor) == (9, 0) else f"{major}{minor}"


def sources_hash(glue: Iterable[str] = ()) -> str:
    """A short hash of glue and the files under csrc/ that it includes, by name and content.

    Without glue, of all files.
    """
    texts = list(glue)
    files = _included(texts) if texts else (path for path in CSRC.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in sorted(files):
        for part in (path.relative_to(CSRC).as_posix().encode(), path.read_bytes()):
            digest.update(len(part).to_bytes(8, "little") + part)
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def _included(texts: Iterable[str]) -> set[Path]:
    """The files under csrc/ that texts include, and those that these include."""
    found: set[Path] = set()
    waiting = list(texts)
    while waiting:
        for name in re.findall(r'^\s*#\s*include "([^"]+)"', waiting.pop(), re.MULTILINE):
            path = CSRC / name
            if path not in found and path.is_file():
                found.add(path)
                waiting.append(path.read_text(encoding="utf-8"))
    return found


# ---------------------------------------------------------------------------------- compilers


def find_compiler(arch: str = "cpu") -> Compiler:
    """The compilers that can build for `arch`: 'cpu' (a C++ compiler) or e.g. '90a' (nvcc too).

    nvcc is looked for in CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda and the PyPI wheels.

    Raises: BuildError that lists every place searched and says how to fix it.
    """
    requested = os.environ.get("CXX")
    names = [requested] if requested else ["c++", "g++"]
    cxx = next((found for name in names if (found := shutil.which(name))), None)
    if cxx is None:
        where = f"CXX={requested!r}" if requested else "c++ and g++ on PATH"
        raise BuildError(f"no C++ compiler found; searched: {where}. {_HELP_CXX}")
    if arch == "cpu":
        return Compiler(Path(cxx))
    toolkit, searched = _search_toolkits(arch)
    if toolkit is None:
        lines = "\n".join(f"  {line}" for line in searched)
        raise BuildError(f"no CUDA compiler for {arch} found; searched:\n{lines}\n{_HELP_NVCC}")
    return Compiler(Path(cxx), toolkit)


def _search_toolkits(arch: str) -> tuple[Toolkit | None, list[str]]:
    """The first suitable toolkit, and a line for each place looked at up to there."""
    searched = []
    for where, home in _toolkit_homes():
        found = _toolkit_at(home) if home else "not there"
        why_not = found if isinstance(found, str) else _why_not(found, arch)
        searched.append(f"{where}{f' = {home}' if home else ''}: {why_not or 'taken'}")
        if isinstance(found, Toolkit) and not why_not:
            return found, searched
    return None, searched


def _toolkit_homes() -> Iterator[tuple[str, Path | None]]:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        value = os.environ.get(variable)
        yield variable, Path(value) if value else None
    nvcc = shutil.which("nvcc")
    yield "nvcc on PATH", Path(nvcc).resolve().parent.parent if nvcc else None
    yield "the usual folder", _USUAL_HOME
    spec = importlib.util.find_spec("nvidia")  # the wheels share this namespace package
    folders = spec.submodule_search_locations if spec else None
    wheels = sorted(home for folder in folders or () for home in Path(folder).glob("cu[0-9]*"))
    yield from (("PyPI wheels", home) for home in wheels)
    if not wheels:
        yield "PyPI wheels", None


def _toolkit_at(home: Path) -> Toolkit | str:
    """The toolkit in this folder, or why there is none."""
    nvcc = home / "bin" / "nvcc"
    if not os.access(nvcc, os.X_OK):
        return "no bin/nvcc in it"
    include = home / "include"
    if not (include / "cuda_runtime.h").is_file() or not (include / "cuda.h").is_file():
        return "no include/cuda.h and cuda_runtime.h in it"
    with (include / "cuda.h").open(encoding="utf-8", errors="replace") as header:
        stated = re.search(r"^#define CUDA_VERSION (\d+)", header.read(1 << 16), re.MULTILINE)
    if stated is None:
        return "no CUDA_VERSION in its cuda.h"
    number = int(stated[1])
    return Toolkit(home, nvcc, (number // 1000, number % 1000 // 10))


def _why_not(toolkit: Toolkit, arch: str) -> str:
    """Why this toolkit cannot build for `arch`, or ''."""
    number = int(re.sub(r"\D", "", arch) or 0)
    needed = {100: (12, 8), 101: (12, 8), 103: (12, 9), 110: (13, 0), 120: (12, 8), 121: (12, 9)}
    oldest = needed.get(number, (12, 0))
    if toolkit.version < oldest:
        return f"CUDA {_dotted(toolkit.version)} is too old, {_dotted(oldest)} is needed for {arch}"
    if torch.version.cuda and toolkit.version[0] != int(torch.version.cuda.split(".")[0]):
        return f"CUDA {_dotted(toolkit.version)}, but torch was built with {torch.version.cuda}"
    return ""


def _find_ninja() -> Path:
    """ninja, on PATH or beside this interpreter, whose folder an unactivated venv's PATH lacks."""
    found = shutil.which("ninja") or shutil.which("ninja", path=sysconfig.get_path("scripts"))
    if found is None:
        raise BuildError(f"torch's load_inline needs ninja, which is not on PATH. {_HELP_NINJA}")
    return Path(found)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


# -------------------------------------------------------------------------------------- loading

_loaded: dict[_Library, ctypes.CDLL] = {}
_loading = threading.Lock()


def load(name: str, source: str, arch: str) -> ctypes.CDLL:
    """Load the library that the glue `source` makes of csrc/, building it first if need be.

    `arch` is 'cpu' or a GPU architecture as from `arch_of`. Glue that includes a .cuh is compiled
    by nvcc and links no torch; any other is C++ and may register operators with torch.

    Raises: BuildError.
    """
    return load_many({name: source}, arch)[name]


def load_many(sources: Mapping[str, str], arch: str) -> dict[str, ctypes.CDLL]:
    """Load several libraries, name -> glue, building those that need it side by side; see `load`.

    Raises: BuildError.
    """
    libraries = {name: _library(name, source, arch) for name, source in sources.items()}
    if not all(library in _loaded for library in libraries.values()):
        with _loading:
            _load_missing([one for one in libraries.values() if one not in _loaded], arch)
    return {name: _loaded[library] for name, library in libraries.items()}


def _library(name: str, source: str, arch: str) -> _Library:
    # Host code must be one library for all GPUs: it registers operators, which works only once.
    host_code = arch != "cpu" and ".cuh" not in source
    return _Library(name, source, "cuda" if host_code else arch)


def _load_missing(libraries: list[_Library], arch: str) -> None:
    if arch != "cpu" and not torch.version.cuda:
        raise BuildError(f"torch {torch.__version__} was built without CUDA; nothing for {arch}")
    compiler = find_compiler(arch)
    root = _cache_root()
    for library in libraries:
        if root and (opened := _open(library, root / _entry(library, compiler))):
            _loaded[library] = opened
    unbuilt = [library for library in libraries if library not in _loaded]
    # What takes longest goes first: torch's headers make that a binding.
    unbuilt.sort(key=lambda library: not library.is_binding)
    if unbuilt:
        workers = min(len(unbuilt), len(os.sched_getaffinity(0)))
        with _load_inline_finds(compiler), ThreadPoolExecutor(workers) as pool:
            builds = [pool.submit(_build, library, compiler, root) for library in unbuilt]
        for build in builds:
            build.result()


def _open(library: _Library, entry: Path) -> ctypes.CDLL | None:
    """Load the library of a cache entry; None where there is none or it is damaged."""
    path = entry / f"{library.name}.so"
    try:
        content = path.read_bytes()
        if _why_not_trusted(entry):
            return None
    except OSError:
        return None
    if hashlib.sha256(content[:-_DIGEST_SIZE]).digest() != content[-_DIGEST_SIZE:]:
        _warn(f"{path} is damaged and is built anew")
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        _warn(f"{path} does not load: {error}")
        return None


# ---------------------------------------------------------------------------------------- cache


def _entry(library: _Library, compiler: Compiler) -> str:
    """The name of a library's cache entry: what it is, and a hash of all that it is made from."""
    tools = [compiler.cxx, *([compiler.toolkit.nvcc] if compiler.toolkit else [])]
    # A compiler is known by its file, so that a warm start runs none.
    stamps = [(str(tool.resolve()), tool.stat().st_size, tool.stat().st_mtime_ns) for tool in tools]
    versions = [torch.__version__, torch.version.cuda, sys.implementation.cache_tag]
    flags = [*library.cxx_flags, *NVCC_FLAGS, library.gencode]
    if "binding.cpp" in library.source:
        # Python calls it, if Python's headers are there.
        versions += [sysconfig.get_config_var("SOABI"), str(_has_python_headers())]
    machine = [platform.machine(), *(_cpu_features() if library.arch == "cpu" else [])]
    made_of = [sources_hash([library.source]), flags, stamps, versions, machine]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    return f"{library.name}-{library.arch}-{key}"


def _has_python_headers() -> bool:
    return Path(sysconfig.get_path("include"), "Python.h").is_file()


@cache
def _cpu_features() -> list[str]:
    """What native flags stand for here: a cache may be shared with other machines."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return [platform.processor(), platform.node()]
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return sorted({line for line in text.splitlines() if line.startswith(wanted)})


def _cache_root() -> Path | None:
    """The cache folder, made if missing; None, with one warning, where it must not be used."""
    root = config.cache_dir()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        why_not = _why_not_trusted(root)
    except OSError as error:
        why_not = _reason(error)
    if why_not:
        _warn_no_cache(root, why_not)
        return None
    return root.absolute()


def _why_not_trusted(folder: Path) -> str:
    """Why code in this folder could be somebody else's, or ''."""
    status = folder.stat()
    if status.st_uid != os.geteuid():
        return f"user {status.st_uid} owns it, and this is user {os.geteuid()}"
    if status.st_mode & 0o022:
        return f"others can write to it (mode {status.st_mode & 0o777:o}); try chmod go-w"
    return ""


def _build(library: _Library, compiler: Compiler, root: Path | None) -> None:
    """Build and load, in the cache where it can be used, else for this process alone."""
    opened = _build_cached(library, compiler, root) if root else None
    try:
        private = "for this process alone"
        _loaded[library] = opened or _compile(library, compiler, _private_folder(), private)
    except OSError as error:
        raise BuildError(f"{library.name} cannot be built: {_reason(error)}") from error


def _build_cached(library: _Library, compiler: Compiler, root: Path) -> ctypes.CDLL | None:
    """Build the cache entry, or wait for the process that does; None where the cache fails."""
    entry = root / _entry(library, compiler)
    try:
        entry.mkdir(mode=0o700, exist_ok=True)
        if why_not := _why_not_trusted(entry):
            raise PermissionError(f"{why_not}: {entry}")
        with lock(entry / "lock", f"compiles {library.name}") as ours:
            if opened := _open(library, entry):
                return opened  # another process built it while this one waited
            if ours:
                _sweep(entry)
                return _compile(library, compiler, entry, f"once; kept in {root}")
    except OSError as error:
        _warn_no_cache(root, _reason(error))
    return None


def _compile(library: _Library, compiler: Compiler, folder: Path, kept: str) -> ctypes.CDLL:
    """Build the library aside in `folder`, load it and move it to its place there.

    Raises: BuildError if it does not compile; OSError if `folder` is at fault.
    """
    from torch.utils import cpp_extension

    load_inline: Any = cpp_extension.load_inline
    is_kernel = ".cuh" in library.source
    message = f"compiling {library.name} for {library.target} ({kept}) …"
    announcement = threading.Timer(_SLOW_SECONDS, _say, [message])
    announcement.start()
    # A fresh folder: load_inline waits forever for a lock file that a dead process left.
    aside = tempfile.TemporaryDirectory(prefix=".build-", dir=folder, ignore_cleanup_errors=True)
    with aside as scratch:
        try:
            if compiler.toolkit:  # the wheels have the runtime under its full name only
                for runtime in compiler.toolkit.home.glob("lib/libcudart.so.*"):
                    (Path(scratch) / "libcudart.so").symlink_to(runtime)
                    break
            built = Path(
                load_inline(
                    library.name,
                    cpp_sources="" if is_kernel else library.source,
                    cuda_sources=library.source if is_kernel else None,
                    extra_cflags=list(library.cxx_flags),
                    extra_cuda_cflags=[*NVCC_FLAGS, library.gencode],
                    extra_ldflags=["-Wl,--as-needed", "-L.", "-fopenmp"],
                    extra_include_paths=[str(CSRC)],
                    build_directory=scratch,
                    with_cuda=compiler.toolkit is not None,
                    is_python_module=False,
                    no_implicit_headers=True,
                )
            )
            opened = ctypes.CDLL(str(built))
        except (OSError, RuntimeError) as error:
            if getattr(error, "errno", None) or any(one in str(error) for one in _DISK_TROUBLE):
                raise OSError(errno.EIO, _reason(error)) from error
            tool = compiler.toolkit.nvcc if is_kernel and compiler.toolkit else compiler.cxx
            raise BuildError(f"{library.name} does not build with {tool}:\n{error}") from error
        finally:
            announcement.cancel()
        # From here on it is loaded, which for a binding can happen only once in a process.
        try:
            with built.open("r+b") as file:
                digest = hashlib.sha256(file.read()).digest()
                file.write(digest)
            built.replace(folder / f"{library.name}.so")
        except OSError as error:
            _warn_no_cache(folder, _reason(error))
    return opened


@contextmanager
def _load_inline_finds(compiler: Compiler) -> Iterator[None]:
    """Have load_inline use these compilers; it takes them from process-wide places only."""
    try:
        from torch.utils import cpp_extension
    except ImportError as error:  # it needs setuptools
        raise BuildError(f"torch's load_inline cannot be imported: {error}") from error
    path = os.pathsep.join(filter(None, [os.environ.get("PATH"), str(_find_ninja().parent)]))
    wanted = {"PATH": path, "CXX": str(compiler.cxx)}
    saved = {name: os.environ.get(name) for name in wanted}
    home = cpp_extension.CUDA_HOME
    os.environ.update(wanted)
    if compiler.toolkit:
        cpp_extension.CUDA_HOME = str(compiler.toolkit.home)
    try:
        yield
    finally:
        cpp_extension.CUDA_HOME = home
        for name, value in saved.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@contextmanager
def lock(path: Path, task: str) -> Iterator[bool]:
    """Hold a lock that dies with its holder; False, with a warning, where it was not had in time.

    `task` says what its holder does. Raises: OSError where the lock's file cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield _acquire(descriptor, task)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, task: str) -> bool:
    start = time.monotonic()
    timeout = config.build_timeout()
    announced = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            pass
        except OSError:
            return True  # a file system without locks: the rename is atomic all the same
        waited = time.monotonic() - start
        if waited > timeout:
            _warn(
                f"another process that {task} has held the lock for {timeout:g} s "
                "(FASTCONV1D_BUILD_TIMEOUT); this one goes on without it"
            )
            return False
        if waited > _SLOW_SECONDS and not announced:
            _say(f"waiting for another process that {task} …")
            announced = True
        time.sleep(0.05)


def _sweep(entry: Path) -> None:
    """Remove what killed builders left."""
    for leftover in entry.glob(".build-*"):
        if time.time() - leftover.stat().st_mtime > config.build_timeout():
            shutil.rmtree(leftover, ignore_errors=True)


@cache
def _private_root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fastconv1d-", ignore_cleanup_errors=True)


def _private_folder() -> Path:
    return Path(tempfile.mkdtemp(dir=_private_root().name))


# --------------------------------------------------------------------------------------- reports


def status(arch: str = "80") -> dict[str, Any]:
    """What `doctor` tells of building for `arch`: compilers, places searched, cache, entries.

    Keys: cxx, ninja, nvcc, cuda_version (None where not found), searched (lines), problem (why
    nothing can be built for `arch`, or ''), cache_dir, cache_problem ('' if usable), sources_hash,
    entries (name, arch, path, bytes, age in seconds).
    """
    toolkit, searched = _search_toolkits(arch)
    report: dict[str, Any] = {"cxx": None, "ninja": None, "problem": ""}
    try:
        report["cxx"] = str(find_compiler().cxx)
        report["ninja"] = str(_find_ninja())
        if arch != "cpu":
            find_compiler(arch)
    except BuildError as error:
        report["problem"] = str(error)
    report |= {
        "nvcc": str(toolkit.nvcc) if toolkit else None,
        "cuda_version": _dotted(toolkit.version) if toolkit else None,
        "searched": searched,
        "sources_hash": sources_hash(),
    }
    try:
        root = config.cache_dir()
    except RuntimeError as error:  # there is no home folder
        return report | {"cache_dir": "", "cache_problem": str(error), "entries": []}
    return report | {
        "cache_dir": str(root),
        "cache_problem": _cache_problem(root),
        "entries": [_describe(path) for path in sorted(root.glob("*-*-*/*.so"))],
    }


def _cache_problem(root: Path) -> str:
    if not root.exists():
        return ""  # made by the first build
    if not root.is_dir():
        return "it is not a folder"
    if why_not := _why_not_trusted(root):
        return why_not
    return "" if os.access(root, os.R_OK | os.W_OK | os.X_OK) else "this user cannot write to it"


def _describe(path: Path) -> dict[str, Any]:
    name, arch, _ = path.parent.name.rsplit("-", 2)
    size, age = path.stat().st_size, time.time() - path.stat().st_mtime
    return {"name": name, "arch": arch, "path": str(path), "bytes": size, "age": age}


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _say(message: str) -> None:
    print(f"fastconv1d: {message}", file=sys.stderr, flush=True)


@cache
def _warn(message: str) -> None:
    """Warn once in a process."""
    warnings.warn(f"fastconv1d: {message}", RuntimeWarning, stacklevel=2)


def _warn_no_cache(folder: Path, why_not: str) -> None:
    _warn(
        f"the cache folder {folder} is not used: {why_not}. Kernels are compiled for this process "
        "alone; set FASTCONV1D_CACHE_DIR to a folder that only you can write to."
    )
