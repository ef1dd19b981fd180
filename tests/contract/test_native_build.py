"""The native core as it is installed: with and without a compiler, from a wheel, on CPUs without AVX-512.

Slow: one build of a wheel, and virtual environments. CPUs without AVX-512 are qemu's (Debian: qemu-user), which ends a
program at the first instruction that such a CPU doesn't have; where it is absent, STRIKEFORGE_ISA masks the sets
instead, which shows that the dispatch obeys and not what the code holds: those tests say "masked".
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.contract.test_host_install import ROOT, TIMEOUT_S, copied_sources
from tests.serving.native.test_surface_net import SMALL, bundle_of, surfaces
from tests.serving.native.test_surface_net import expected as exact_answers
from tests.tiny_family import FAMILIES, family_bundle

pytestmark = pytest.mark.slow

QEMU = shutil.which("qemu-x86_64")
INSTRUCTION_SETS = ("avx2", "avx512", "vnni", "bf16", "amx")
BASE_INSTALL_MB = 100
UNOPTIMISED = "--config-settings=cmake.build-type=Debug"  # compiles faster
NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}
WORKOUT = '''
"""Every kernel of the installed core: both encoders, the head, chains, Black-76, the surface net; all precisions.

Arguments: a file of surfaces with their answers, a surface bundle, pricing bundles. Prints the instruction sets.
"""
import sys
from pathlib import Path

import numpy as np

from serving import black76, black76_reference, native
from serving.bundle import load_bundle
from serving.engine import PRECISIONS, golden_parity, open_engine
from serving.engines.native_surface import open_surface_engine
from serving.repricing import Chain, Repriced, Repricer, _InTurn
from serving.surface_score import SurfaceInput

COARSE = 0.1  # of contexts and volatilities of order one: what runs is this net, and no other
SINGLE = dict(rtol=1e-4, atol=1e-4)  # docs/options.md: 16 e F of a price, (32 + 20 d^2) e of a Greek; F 100, |d| < 9
core = native.core()
print(",".join(core.isas()), core.choose_isa())
surfaces, surface_bundle, *pricing_bundles = (Path(name) for name in sys.argv[1:])

for folder in pricing_bundles:
    bundle = load_bundle(folder)
    for precision in PRECISIONS["native"]:
        engine = open_engine(bundle, "native", precision=precision)
        for parity in golden_parity(bundle, engine):
            right = parity.holds if precision == "fp32" else parity.max_abs_difference <= COARSE
            assert right, (folder, precision, parity)
        info = engine.info()
        rng = np.random.default_rng(0)
        contracts = rng.normal(size=(1000, info.contract_features)).astype(np.float32)
        contracts[:, 0] = rng.uniform(0.1, 0.5, 1000)
        contracts[:, 2] = 1.0
        chain = Chain.prepare(contracts, 100.0, rng.uniform(80, 120, 1000), 0.5, 0.98, rng.choice([-1.0, 1.0], 1000))
        x = rng.normal(size=info.step_features).astype(np.float32)
        engine.advance(x)
        fused, in_turn = Repriced.empty(1000), Repriced.empty(1000)
        Repricer(engine, chain).reprice(x, fused)
        _InTurn(engine, chain).run(x, in_turn.volatility, in_turn.values)
        assert np.isfinite(fused.values).all() and (fused.volatility > 0).all()
        assert np.array_equal(fused.volatility, in_turn.volatility)
        within = dict(rtol=1e-9, atol=1e-10) if precision == "fp32" else SINGLE
        assert np.allclose(fused.values, in_turn.values, **within)

assert black76.implementation() == f"native_{core.choose_isa()}"
options = (100.0, np.linspace(80, 125, 101), 0.5, np.linspace(0.2, 0.9, 101), 0.98, 1.0)
found, wanted = black76.value(*options), black76_reference.value(*options)
for name in black76.OUTPUTS:
    assert np.allclose(getattr(found, name), getattr(wanted, name), rtol=1e-9, atol=1e-9), name
again, status = black76.implied_volatility(found.price, *options[:3], *options[4:])
assert not status.any() and np.allclose(again, options[3], rtol=1e-6)

given = np.load(surfaces)
known = SurfaceInput(*(given[name] for name in SurfaceInput.__dataclass_fields__))
for precision in PRECISIONS["native"]:
    answer = open_surface_engine(load_bundle(surface_bundle), precision).answer(known)
    for name in ("completed", "regime") if precision != "fp32" else type(answer).__dataclass_fields__:
        wanted = given["answer-" + name]
        allowed = (1e-4 if precision == "fp32" else COARSE) * np.maximum(np.abs(wanted), 1.0)
        assert (np.abs(getattr(answer, name) - wanted) <= allowed).all(), (precision, name)
'''
PLANTED = """
#include <immintrin.h>
#include <cstdio>
int main(int count, char**) {
    float values[16];
    for (int i = 0; i < 16; ++i) values[i] = static_cast<float>(count);
    PLANT
    std::printf("%f\\n", values[3]);
}
"""
PLANTS = {
    "Haswell": ("-mavx512f", "_mm512_storeu_ps(values, _mm512_sqrt_ps(_mm512_loadu_ps(values)));"),
    "Westmere": ("-mavx2", "_mm256_storeu_ps(values, _mm256_sqrt_ps(_mm256_loadu_ps(values)));"),
}


def execute(*command: object, where: Path, said: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command outside the repository; what is installed there alone can be imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "STRIKEFORGE"))}
    return subprocess.run(
        [str(one) for one in command], capture_output=True, text=True, check=False, cwd=where, timeout=TIMEOUT_S,
        env=kept | (said or {}),
    )  # fmt: skip


def output(*command: object, where: Path, said: dict[str, str] | None = None) -> str:
    done = execute(*command, where=where, said=said)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(python: Path, *arguments: object, where: Path, **said: str) -> subprocess.CompletedProcess[str]:
    """This environment's pip for another one; what building needs is taken from this one."""
    tools = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    return execute(*tools, *arguments, where=where, said=said)


def environment(folder: Path, *, borrowing: bool) -> Path:
    """A new environment's Python. `borrowing`: it sees this one's libraries, but not this one's strikeforge."""
    venv.create(folder, with_pip=False, symlinks=True)
    if borrowing:
        (packages,) = (folder / "lib").glob("python*/site-packages")
        (packages / "borrowed.pth").write_text(f"{Path(np.__file__).parent.parent}\n")
    return folder / "bin" / "python"


def needs_compiler() -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler here")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A wheel of these sources, and the folder with its object files."""
    needs_compiler()
    folder = tmp_path_factory.mktemp("wheel")
    sources = copied_sources(folder / "sources")
    options = ("--no-deps", "--no-build-isolation", f"--config-settings=build-dir={folder / 'objects'}")
    done = pip(Path(sys.executable), "wheel", *options, "--wheel-dir", folder, sources, where=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel, folder / "objects"


@pytest.fixture(scope="module")
def host(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment that holds the wheel and what it requires, nothing else."""
    folder = tmp_path_factory.mktemp("host")
    python = environment(folder / "environment", borrowing=False)
    done = pip(python, "install", "--quiet", "-c", ROOT / "constraints.txt", built[0], where=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return python


def test_a_wheel_holds_the_package_and_the_compiled_core_alone(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert {name.partition("/")[0] for name in names} == {"serving"}
    examples = {"serving/host/host.example.toml", "serving/host/limits.example.toml"}  # a host's files begin with them
    assert {name for name in names if Path(name).suffix not in (".py", ".so")} == examples
    assert [name for name in names if name.startswith("serving/native/")] == [
        "serving/native/__init__.py", next(name for name in names if name.endswith(".so")),
    ]  # fmt: skip
    assert len([name for name in names if name.endswith(".so")]) == 1
    assert "cp3" in built[0].name


def test_a_wheel_runs_with_the_base_dependencies(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = output(host.with_name("strikeforge-host"), "info", where=host.parent)
    (line,) = [line for line in out.splitlines() if line.startswith("native core:")]
    assert "portable" in line
    (packages,) = (host.parent.parent / "lib").glob("python*/site-packages")
    megabytes = sum(file.stat().st_size for file in packages.rglob("*") if file.is_file()) / 1e6
    with capsys.disabled():
        sys.stdout.write(f"\nbase install with the native core: {megabytes:.1f} MB; {line}\n")
    assert megabytes <= BASE_INSTALL_MB


@pytest.fixture(scope="module")
def workout(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The script's arguments: bundles of every family, and surfaces with what the exact net answers."""
    folder = tmp_path_factory.mktemp("workout")
    pricing = [
        str(family_bundle(folder / f"{family}-{semantics}", family, semantics=semantics, members=2).directory)
        for family in FAMILIES
        for semantics in ("window", "stateful")
    ]
    surface = bundle_of(folder / "surface", SMALL).directory
    known = surfaces(SMALL, 3)
    exact = exact_answers(SMALL, "fp32", 3)
    answers = {f"answer-{name}": np.concatenate([row[name][0].reshape(1, -1) for row in exact]) for name in exact[0]}
    answers["answer-surprise"] = answers["answer-surprise"].reshape(-1)
    np.savez(folder / "surfaces.npz", **vars(known), **answers)
    return (str(folder / "surfaces.npz"), str(surface), *pricing)


def needs_x86() -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("instruction sets of x86-64")


@pytest.mark.parametrize(("cpu", "runs"), [("Haswell", "avx2"), ("Westmere", "portable")])
def test_a_wheel_runs_on_a_cpu_without_avx512(
    host: Path, workout: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], cpu: str, runs: str
) -> None:
    needs_x86()
    emulated = [QEMU, "-cpu", cpu] if QEMU else []
    masked = {} if QEMU else {"STRIKEFORGE_ISA": runs}
    said = output(*emulated, host, "-c", WORKOUT, *workout, where=tmp_path, said=masked).split()
    with capsys.disabled():
        sys.stdout.write(f"\n{cpu}: {'emulated by qemu' if QEMU else 'masked, not emulated'}, runs {said[1]}\n")
    assert said[1] == runs
    if QEMU:
        assert said[0].split(",")[-1] == runs
        refused = execute(*emulated, host, "-c", WORKOUT, *workout, where=tmp_path, said={"STRIKEFORGE_ISA": "avx512"})
        assert refused.returncode == 1
        assert f"goes up to '{runs}'" in refused.stderr


@pytest.mark.parametrize("isa", ["portable", *INSTRUCTION_SETS])
def test_a_wheel_runs_at_every_level_of_this_cpu(
    host: Path, workout: tuple[str, ...], tmp_path: Path, isa: str
) -> None:
    needs_x86()
    levels = output(host, "-c", "from serving import native; print(*native.core().isas())", where=tmp_path).split()
    if isa not in levels:
        pytest.skip(f"this CPU goes up to {levels[-1]}")
    assert output(host, "-c", WORKOUT, *workout, where=tmp_path, said={"STRIKEFORGE_ISA": isa}).split()[1] == isa


@pytest.mark.parametrize("cpu", list(PLANTS))
def test_the_emulated_cpu_ends_a_program_at_what_it_lacks(tmp_path: Path, cpu: str) -> None:
    """A planted instruction of the next set: else the emulation would show nothing."""
    needs_x86()
    needs_compiler()
    if QEMU is None:
        pytest.skip("qemu-x86_64 (Debian: qemu-user) isn't here")
    flag, instruction = PLANTS[cpu]
    for name, line in (("planted", instruction), ("clean", "")):
        source = tmp_path / f"{name}.cpp"
        source.write_text(PLANTED.replace("PLANT", line))
        output("c++", "-O1", flag if line else "-O0", source, "-o", tmp_path / name, where=tmp_path)
    assert output(QEMU, "-cpu", cpu, tmp_path / "clean", where=tmp_path)
    assert execute(QEMU, "-cpu", cpu, tmp_path / "planted", where=tmp_path).returncode == -signal.SIGILL


@pytest.mark.parametrize("editable", [False, True])
def test_without_a_compiler_it_installs_and_says_why(tmp_path: Path, editable: bool) -> None:
    python = environment(tmp_path / "environment", borrowing=True)
    sources = copied_sources(tmp_path / "sources")
    how = ("--editable", sources) if editable else (sources,)
    install = ("install", "--no-deps", "--no-build-isolation", UNOPTIMISED, *how)
    done = pip(python, *install, where=tmp_path, **NO_COMPILER)
    assert done.returncode == 0, done.stdout + done.stderr
    info = output(python.with_name("strikeforge-host"), "info", where=tmp_path)
    assert "native core: the native core isn't here: when strikeforge was installed, no working C++ compiler" in info
    place = output(python, "-c", "import serving; print(serving.__file__)", where=tmp_path)
    assert place.startswith(str(sources)) == editable
    if editable and shutil.which("c++"):  # a compiler came later
        done = pip(python, *install, where=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "native core: the" not in output(python.with_name("strikeforge-host"), "info", where=tmp_path)
        assert list((sources / "serving/native").glob("_core.*"))


def test_a_core_that_doesnt_compile_fails_the_installation(tmp_path: Path) -> None:
    needs_compiler()
    python = environment(tmp_path / "environment", borrowing=True)
    sources = copied_sources(tmp_path / "sources")
    broken = sources / "serving/native/base/cpu.cpp"
    broken.write_text("#error planted\n" + broken.read_text())
    done = pip(python, "install", "--no-deps", "--no-build-isolation", UNOPTIMISED, sources, where=tmp_path)
    assert done.returncode != 0
    assert "planted" in done.stdout + done.stderr


def test_an_editable_install_is_a_path_that_another_checkout_comes_before(tmp_path: Path) -> None:
    python = environment(tmp_path / "environment", borrowing=True)
    ours, theirs = (copied_sources(tmp_path / name) for name in ("ours", "theirs"))
    for checkout in (ours, theirs):
        for name in ("models", "pipelines", "benchmarks", "tests"):
            (checkout / name).mkdir()
            (checkout / name / "__init__.py").touch()
    done = pip(
        python, "install", "--no-deps", "--no-build-isolation", "--editable", ours, where=tmp_path,
        STRIKEFORGE_WITHOUT_NATIVE="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    tell = "import serving.native as n, models, pipelines, benchmarks, tests\n"
    tell += "print(*{m.__file__.split('/')[-3] for m in (models, pipelines, benchmarks, tests)}, n.__file__)"
    for where, expected in ((tmp_path, ours), (theirs, theirs)):
        checkout, file = output(python, "-c", tell, where=where).split()
        assert checkout == expected.name
        assert file == str(expected / "serving/native/__init__.py")


def weak_symbols(file: Path) -> list[str]:
    """Symbols of an object file of which the linker keeps any one copy."""
    listed = output("nm", "--demangle", "--defined-only", file, where=file.parent)
    return [line for line in listed.splitlines() if re.match(r"[0-9a-f]+ [WwVvu] ", line)]


def test_files_of_an_instruction_set_hold_no_symbol_that_the_linker_may_share(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    """Such a symbol's copy may be the one with AVX-512, and then every CPU gets it."""
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) isn't here")
    suffixes = tuple(f"_{name}.cpp" for name in INSTRUCTION_SETS)
    sources = [file for file in (ROOT / "serving/native").rglob("*.cpp") if file.name.endswith(suffixes)]
    objects = [file for file in built[1].rglob("*.o") if file.stem.endswith(suffixes)]
    assert {file.stem for file in objects} == {file.name for file in sources}
    assert {file.stem.rpartition("_")[2] for file in sources} == set(INSTRUCTION_SETS)
    assert {file.name: weak_symbols(file) for file in objects if weak_symbols(file)} == {}

    planted = tmp_path / "planted_avx2.cpp"
    planted.write_text(
        "#include <algorithm>\nfloat f(float a, float b) { const float c = std::max(a, b); return c; }\n"
    )
    output("c++", "-O0", "-c", planted, "-o", tmp_path / "planted.o", where=tmp_path)
    assert any("std::max" in line for line in weak_symbols(tmp_path / "planted.o"))
