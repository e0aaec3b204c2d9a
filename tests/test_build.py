"""Building, caching and locking, by fault injection, on small sources of this file's own."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastconv1d import build
from kernel_runs import IN_CI

GLUE = 'extern "C" int fastconv1d_answer() { return 42; }'
KERNEL = '#include "tiny.cuh"\n'
TINY_CUH = """
#include <cuda_fp16.h>
__global__ void add(float* y, const __half* x) { y[threadIdx.x] += __half2float(x[threadIdx.x]); }
extern "C" int fastconv1d_answer() { return add == nullptr ? 0 : 42; }
"""
BINDING = """
#include <torch/library.h>
TORCH_LIBRARY(fastconv1d_test_build, m) { m.def("f(Tensor x) -> Tensor"); }
"""
ROOT = Path(build.__file__).parent.parent
DISK_FAULTS = [errno.EROFS, errno.ENOSPC, errno.EDQUOT]

pytestmark = pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None, reason="needs a C++ compiler"
)
needs_nvcc = pytest.mark.skipif(
    not torch.version.cuda or build._search_toolkits("90a")[0] is None,
    reason="needs nvcc and a torch with CUDA",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder, sources and a process state of the test's own; warnings are failures."""
    folder = tmp_path / "cache"
    csrc = tmp_path / "csrc"
    csrc.mkdir()
    (csrc / "tiny.cuh").write_text(TINY_CUH)
    monkeypatch.setenv("FASTCONV1D_CACHE_DIR", str(folder))
    monkeypatch.setattr(build, "CSRC", csrc)
    forget(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield folder


@pytest.fixture
def compilations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Counts the compilations of C++ sources, through a compiler that keeps a log."""
    log = tmp_path / "compilations"
    log.touch()
    use_compiler(monkeypatch, tmp_path, f'case "$*" in *" -c "*) echo >> {log};; esac')
    return lambda: len(log.read_text().splitlines())


def use_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path, first: str) -> None:
    """Put a compiler in CXX that runs the shell line `first`, then the real one."""
    real = build.find_compiler().cxx
    script = folder / "bin" / "g++"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f'#!/bin/sh\n{first}\nexec {real} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process load anew, as a fresh one would."""
    monkeypatch.setattr(build, "_loaded", {})
    build._warn.cache_clear()


def answer(source: str = GLUE, arch: str = "cpu") -> int:
    return int(build.load("tiny", source, arch).fastconv1d_answer())


def built(cache: Path) -> Path:
    """The one library in the cache."""
    (path,) = cache.glob("*/*.so")
    return path


def in_process(code: str = "print(answer())") -> subprocess.Popen[str]:
    """Run `code` in a fresh process that sees the test's cache, sources and compiler."""
    prelude = (
        "import sys, time; from pathlib import Path; from fastconv1d import build\n"
        f"build.CSRC = Path({str(build.CSRC)!r})\n"
        f"def answer(): return build.load('tiny', {GLUE!r}, 'cpu').fastconv1d_answer()\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", prelude + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip()


# ------------------------------------------------------------------------------- the good path


def test_builds_once_and_stays_cached(
    cache: Path, compilations: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer() == 42
    assert build.load("tiny", GLUE, "cpu") is build.load("tiny", GLUE, "cpu")
    forget(monkeypatch)
    assert answer() == 42
    assert compilations() == 1
    assert built(cache).name == "tiny.so"


def test_warm_start_runs_no_compiler_and_imports_none(
    cache: Path, compilations: Callable[[], int]
) -> None:
    answer()
    code = (
        "start = time.perf_counter(); assert answer() == 42\n"
        "print('torch.utils.cpp_extension' in sys.modules, time.perf_counter() - start)"
    )
    imported, seconds = finish(in_process(code)).split()
    assert imported == "False"
    assert float(seconds) < 0.5
    assert compilations() == 1


def test_load_many_builds_each(cache: Path) -> None:
    glue = {f"tiny{n}": GLUE.replace("42", str(n)) for n in range(3)}
    libraries = build.load_many(glue, "cpu")
    assert [libraries[name].fastconv1d_answer() for name in glue] == [0, 1, 2]
    assert len(list(cache.glob("*/*.so"))) == 3


def test_everything_a_library_is_made_from_is_in_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_compiler(monkeypatch, tmp_path, "")

    glue = '#include "tiny.cuh"\n'

    def entry(source: str = glue) -> str:
        return build._entry(build._library("tiny", source, "cpu"), build.find_compiler())

    entries = [entry(), entry(glue + " ")]
    (build.CSRC / "tiny.cuh").write_text(TINY_CUH + " ")
    entries.append(entry())
    (build.CSRC / "tiny.cuh").rename(build.CSRC / "small.cuh")
    entries.append(entry())
    os.utime(os.environ["CXX"], (1, 1))
    entries.append(entry())
    monkeypatch.setattr(build, "CXX_FLAGS", ("-O2",))
    entries.append(entry())
    monkeypatch.setattr(build, "_cpu_features", lambda: ["flags: another processor's"])
    entries.append(entry())
    monkeypatch.setattr(torch, "__version__", "0.0.0")
    entries.append(entry())
    monkeypatch.setattr(sys.implementation, "cache_tag", "other")
    entries.append(entry())
    assert len(set(entries)) == len(entries)
    assert entry() == entries[-1]


def test_sources_hash_follows_names_contents_and_extra() -> None:
    first = build.sources_hash()
    assert len(first) == 16
    assert first == build.sources_hash([])
    assert len({first, build.sources_hash(["a", "b"]), build.sources_hash(["ab"])}) == 3
    (build.CSRC / "tiny.cuh").write_text("")
    assert build.sources_hash() != first


@pytest.mark.parametrize(
    ("capability", "arch"), [((8, 0), "80"), ((8, 9), "89"), ((9, 0), "90a"), ((12, 1), "121")]
)
def test_arch_of(capability: tuple[int, int], arch: str) -> None:
    assert build.arch_of(capability) == arch


def test_progress_is_told_only_when_slow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "_SLOW_SECONDS", 60.0)
    answer()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(build, "_SLOW_SECONDS", 0.1)
    use_compiler(monkeypatch, tmp_path, "sleep 0.3")
    answer(GLUE + " ")
    told = capsys.readouterr().err
    assert told.startswith("fastconv1d: compiling tiny for cpu (once; kept in ")
    assert told.count("\n") == 1


def test_a_build_leaves_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils import cpp_extension

    monkeypatch.delenv("CXX", raising=False)
    before = dict(os.environ), cpp_extension.CUDA_HOME
    answer()
    with pytest.raises(build.BuildError):
        answer("no C++")
    assert (dict(os.environ), cpp_extension.CUDA_HOME) == before


def test_a_build_error_names_library_and_cause(cache: Path) -> None:
    with pytest.raises(build.BuildError, match=r"(?s)^tiny does not build with .*error:"):
        answer("no C++")
    assert not list(cache.glob("*/*.so"))
    assert not list(cache.glob("*/.build-*"))
    assert answer() == 42


# ------------------------------------------------------------------------------------ the cache


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        truncated,
        flipped,
        lambda _: b"",
        lambda _: b"\0" * 100,
        lambda content: content[: -build._DIGEST_SIZE],
    ],
    ids=["truncated", "one bit", "empty", "garbage", "no digest"],
)
def test_a_damaged_library_is_built_anew(
    damage: Callable[[bytes], bytes],
    cache: Path,
    compilations: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer()
    path = built(cache)
    content = path.read_bytes()
    path.unlink()  # this process has the old file mapped
    path.write_bytes(damage(content))
    forget(monkeypatch)
    with pytest.warns(RuntimeWarning, match="is damaged and is built anew") as told:
        assert answer() == 42
    assert len(told) == 1
    assert compilations() == 2
    forget(monkeypatch)
    assert answer() == 42
    assert compilations() == 2


def test_a_folder_in_place_of_the_library_does_not_stop_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer()
    path = built(cache)
    path.unlink()
    path.mkdir()
    (path / "file").touch()
    forget(monkeypatch)
    with pytest.warns(RuntimeWarning, match="is not used: Is a directory"):
        assert answer() == 42


@pytest.mark.parametrize("code", DISK_FAULTS, ids=errno.errorcode.get)
@pytest.mark.parametrize("function", ["mkdir", "open", "replace"])
@pytest.mark.parametrize("fresh", [True, False], ids=["no entry yet", "damaged entry"])
def test_a_disk_fault_means_a_build_for_this_process_alone(
    function: str,
    code: int,
    fresh: bool,
    cache: Path,
    compilations: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache.mkdir(mode=0o700)
    if not fresh:
        library = build._library("tiny", GLUE, "cpu")
        (cache / build._entry(library, build.find_compiler())).mkdir(mode=0o700)
    real = getattr(os, function)

    def faulty(path: Any, *args: Any, **kwargs: Any) -> Any:
        reads = function == "open" and not (args and args[0] & (os.O_RDWR | os.O_WRONLY))
        if str(path).startswith(str(cache)) and not reads:
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, function, faulty)
    with pytest.warns(RuntimeWarning, match=os.strerror(code)) as told:
        assert answer() == 42
    assert len(told) == 1
    assert compilations() == 1  # twice would register a binding's operators twice
    assert not list(cache.glob("*/*.so"))


def test_a_disk_fault_inside_load_inline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils import cpp_extension

    real: Any = cpp_extension.load_inline

    def faulty(*args: Any, **kwargs: Any) -> Any:
        if kwargs["build_directory"].startswith(str(cache)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args, **kwargs)

    monkeypatch.setattr(cpp_extension, "load_inline", faulty)
    with pytest.warns(RuntimeWarning, match=os.strerror(errno.EIO)):
        assert answer() == 42


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTCONV1D_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(RuntimeWarning, match="is not used: Not a directory"):
        assert answer() == 42


def test_a_disk_that_fills_while_compiling(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = f'case "$PWD $*" in {cache}*" -c "*) echo No space left on device; exit 1;; esac'
    use_compiler(monkeypatch, tmp_path, fails)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        assert answer() == 42
    assert not list(cache.glob("*/*.so"))


def test_a_read_only_cache_is_good_enough_to_load_from(
    cache: Path, compilations: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer()
    forget(monkeypatch)
    real = os.open

    def read_only(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", read_only)
    assert answer() == 42
    assert compilations() == 1


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_cache_that_others_can_write_is_refused(mode: int, cache: Path) -> None:
    cache.mkdir()
    cache.chmod(mode)
    with pytest.warns(RuntimeWarning, match=f"others can write to it \\(mode {mode:o}\\)"):
        assert answer() == 42
    assert not list(cache.iterdir())


@pytest.mark.parametrize("part", ["cache", "entry"])
def test_what_others_could_have_put_there_is_not_loaded(
    part: str, cache: Path, compilations: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer()
    (cache if part == "cache" else built(cache).parent).chmod(0o777)
    forget(monkeypatch)
    with pytest.warns(RuntimeWarning, match="others can write to it") as told:
        assert answer() == 42
    assert len(told) == 1
    assert compilations() == 2


def test_a_cache_of_another_user_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(mode=0o700)
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.warns(RuntimeWarning, match=f"owns it, and this is user {other}"):
        assert answer() == 42
    assert not list(cache.iterdir())


def test_the_cache_is_private_whatever_the_umask(cache: Path) -> None:
    before = os.umask(0)
    try:
        answer()
    finally:
        os.umask(before)
    for folder in (cache, built(cache).parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


# ----------------------------------------------------------------------------- several processes


@pytest.mark.parametrize("processes", [8] if IN_CI else [2, 8])
def test_processes_that_start_together_build_once(
    processes: int, cache: Path, compilations: Callable[[], int]
) -> None:
    together = f"""
Path(r"{cache.parent}/ready-" + str(__import__("os").getpid())).touch()
while not Path(r"{cache.parent}/go").exists(): time.sleep(0.01)
print(answer())
"""
    running = [in_process(together) for _ in range(processes)]
    deadline = time.monotonic() + 120
    while len(list(cache.parent.glob("ready-*"))) < processes and time.monotonic() < deadline:
        time.sleep(0.05)
    (cache.parent / "go").touch()
    assert [finish(process) for process in running] == ["42"] * processes
    assert compilations() == 1


def test_stale_lock_files_of_torch_and_of_ours_do_not_hold_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = cache / build._entry(build._library("tiny", GLUE, "cpu"), build.find_compiler())
    extensions = tmp_path / "torch_extensions"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(extensions))
    for folder in (cache, entry, entry / ".build-dead", extensions, extensions / "tiny"):
        folder.mkdir(mode=0o700)
        (folder / "lock").touch()
    assert finish(in_process()) == "42"
    assert built(cache).parent == entry


def test_a_killed_builder_frees_the_lock_and_its_leftovers_go(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = f"until [ -e {tmp_path}/go ]; do sleep 0.1; done"
    use_compiler(monkeypatch, tmp_path, f'case "$*" in *" -c "*) {hang};; esac')
    victim = in_process()
    deadline = time.monotonic() + 60
    while not list(cache.glob("*/.build-*/build.ninja")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.communicate()
    (leftover,) = cache.glob("*/.build-*")
    os.utime(leftover, (1, 1))
    (tmp_path / "go").touch()
    start = time.monotonic()
    assert answer() == 42
    assert time.monotonic() - start < 30
    assert not leftover.exists()


def test_a_builder_that_hangs_is_not_waited_for_longer_than_the_timeout(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = cache / build._entry(build._library("tiny", GLUE, "cpu"), build.find_compiler())
    entry.mkdir(mode=0o700, parents=True)
    cache.chmod(0o700)
    monkeypatch.setenv("FASTCONV1D_BUILD_TIMEOUT", "0.3")
    start = time.monotonic()
    with (entry / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.warns(RuntimeWarning, match=r"0\.3 s \(FASTCONV1D_BUILD_TIMEOUT\)"):
            assert answer() == 42
    assert time.monotonic() - start < 15
    assert not list(cache.glob("*/*.so"))


# ------------------------------------------------------------------------------------ compilers


def toolkit_at(home: Path, version: int = 13000) -> Path:
    """A folder that looks like a CUDA toolkit."""
    (home / "bin").mkdir(parents=True)
    (home / "include").mkdir()
    (home / "bin" / "nvcc").touch(mode=0o755)
    (home / "include" / "cuda_runtime.h").touch()
    (home / "include" / "cuda.h").write_text(f"/* CUDA */\n#define CUDA_VERSION {version}\n")
    return home


@pytest.fixture
def no_toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a C++ compiler and no CUDA, whatever this one has, and a torch for CUDA 13."""
    monkeypatch.setenv("CXX", str(build.find_compiler().cxx))
    for name, value in [("CUDA_HOME", ""), ("CUDA_PATH", ""), ("PATH", str(tmp_path / "nothing"))]:
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(build, "_USUAL_HOME", tmp_path / "nothing")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.mark.usefixtures("no_toolkit")
def test_no_toolkit_names_every_place_and_the_cure() -> None:
    with pytest.raises(build.BuildError) as raised:
        build.find_compiler("90a")
    for word in ("CUDA_HOME", "CUDA_PATH", "PATH", "nothing", "PyPI", "fastconv1d[compiler]"):
        assert word in str(raised.value)


@pytest.mark.usefixtures("no_toolkit")
@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_toolkit_from_the_environment(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(toolkit_at(tmp_path / "cuda")))
    toolkit = build.find_compiler("90a").toolkit
    assert toolkit == build.Toolkit(tmp_path / "cuda", tmp_path / "cuda/bin/nvcc", (13, 0))


@pytest.mark.usefixtures("no_toolkit")
def test_toolkit_from_path_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = toolkit_at(tmp_path / "cuda")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "nvcc").symlink_to(home / "bin" / "nvcc")
    monkeypatch.setenv("PATH", str(tmp_path / "links"))
    toolkit = build.find_compiler("90a").toolkit
    assert toolkit is not None
    assert toolkit.home == home


@pytest.mark.usefixtures("no_toolkit")
def test_toolkit_from_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user" / "nvidia").mkdir(parents=True)
    home = toolkit_at(tmp_path / "site" / "nvidia" / "cu13")
    folders = [str(tmp_path / site / "nvidia") for site in ("user", "site")]
    spec = SimpleNamespace(submodule_search_locations=folders)
    monkeypatch.setattr("importlib.util.find_spec", {"nvidia": spec}.get)
    toolkit = build.find_compiler("90a").toolkit
    assert toolkit is not None
    assert toolkit.home == home


@pytest.mark.usefixtures("no_toolkit")
@pytest.mark.parametrize(
    ("version", "arch", "why"),
    [
        (11080, "80", "CUDA 11.8 is too old, 12.0 is needed for 80"),
        (12040, "100", "CUDA 12.4 is too old, 12.8 is needed for 100"),
        (12080, "90a", "CUDA 12.8, but torch was built with 13.0"),
    ],
)
def test_unsuitable_toolkits_are_passed_over_with_the_reason(
    version: int, arch: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit_at(tmp_path / "old", version)))
    with pytest.raises(build.BuildError, match=why):
        build.find_compiler(arch)
    monkeypatch.setenv("CUDA_PATH", str(toolkit_at(tmp_path / "new")))
    toolkit = build.find_compiler(arch).toolkit
    assert toolkit is not None
    assert toolkit.home == tmp_path / "new"


@pytest.mark.parametrize("missing", ["bin/nvcc", "include/cuda.h", "include/cuda_runtime.h"])
def test_a_folder_without_a_part_is_no_toolkit(missing: str, tmp_path: Path) -> None:
    home = toolkit_at(tmp_path / "cuda")
    (home / missing).unlink()
    found = build._toolkit_at(home)
    assert isinstance(found, str)
    assert Path(missing).name in found


def test_no_cxx_and_no_ninja_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match=r"CXX='no-such-compiler'.*apt install g\+\+"):
        answer()
    monkeypatch.delenv("CXX")
    use_compiler(monkeypatch, tmp_path, "")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(build.BuildError, match="pip install ninja"):
        answer()


def test_torch_without_cuda_builds_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(build.BuildError, match="was built without CUDA"):
        answer(KERNEL, "90a")


@needs_nvcc
@pytest.mark.parametrize("arch", ["80", "90a", "100"])
def test_a_kernel_library_builds_and_links_no_torch(arch: str, cache: Path) -> None:
    assert answer(KERNEL, arch) == 42
    needed = subprocess.run(
        ["readelf", "-d", built(cache)], capture_output=True, text=True, check=True
    ).stdout
    assert "libcudart" in needed
    assert "torch" not in needed
    assert "c10" not in needed


@needs_nvcc
def test_a_binding_is_one_library_for_all_gpus() -> None:
    first = build.load("binding", BINDING, "90a")
    assert build.load("binding", BINDING, "80") is first


# --------------------------------------------------------------------------------------- status


def test_status_tells_what_is_there(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build.status("cpu")
    assert (before["problem"], before["cache_problem"], before["entries"]) == ("", "", [])
    assert not cache.exists()
    answer()
    path = built(cache)
    (cache / "odd").mkdir()
    (cache / "odd" / "odd.so").touch()
    after = build.status("cpu")
    (entry,) = after["entries"]
    assert (entry["name"], entry["arch"], entry["path"]) == ("tiny", "cpu", str(path))
    assert entry["bytes"] == path.stat().st_size
    assert 0 <= entry["age"] < 600
    assert after["cxx"] == str(build.find_compiler().cxx)
    cache.chmod(0o777)
    monkeypatch.setenv("CXX", "no-such-compiler")
    broken = build.status("cpu")
    assert "others can write" in broken["cache_problem"]
    assert "no-such-compiler" in broken["problem"]
