"""The shape of the code: which way imports point, who owns what, and how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "mlxfn"
SOURCES = sorted([*LIBRARY.rglob("*.py"), *(ROOT / "cli").rglob("*.py")])

# Rooms from the ground up. A module may import from its own level or a lower one; within the
# level of the leaves, families (losses, transforms, ...) do not import each other. The longest
# name wins, so data.records is an edge, and whatever else is in data is a leaf.
LEVELS: dict[str, tuple[str, ...]] = {
    "ground": (
        "errors",
        "tree",
        "random",
        "files",
        "cachedir",
        "compiler",
        "jit",
        "blas",
        "signals",
        "cgroup",
        "device",
        "scheduling",
    ),
    "values": ("state", "config", "configfile", "result"),
    "leaves": (
        "losses",
        "transforms",
        "data",
        "models",
        "checkpoint",
        "monitors",
        "memory",
        "events",
        "chart",
    ),
    "composers": ("step", "evaluate", "timing", "data.cursor", "data.prefetch"),
    "edges": (
        "data.records",
        "data.readers",
        "data.worker",
        "data.workers",
        "data.prepare",
        "data.store",
        "data.hub",
        "data.doctor",
        "data.page",
        "models.load",
        "models.safetensors",
        "models.folders",
        "models.adapter_folder",
        "models.lora",
        "models.export",
        "models.peft",
        "models.generate",
        "checkpoint.store",
        "environment",
        "sinks",
        "report",
        "testing",
    ),
    "assembly": (
        "planning",
        "assemble",
        "measure",
        "governor",
        "recorder",
        "rundir",
        "health",
        "ending",
        "reopen",
        "testing.verify",
    ),
    "run": ("run",),
    "cli": ("cli",),
}
LEVEL_OF = {room: level for level, names in enumerate(LEVELS.values()) for room in names}
NAMES = list(LEVELS)
LEAVES = NAMES.index("leaves")


def room_of(module: str) -> str | None:
    """Return the longest room a dotted module (without ``mlxfn.``) lies in, else None."""
    parts = module.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in LEVEL_OF), None)


def module_of(path: Path) -> str:
    """Return ``data.collate`` for mlxfn/data/collate.py and ``cli.main`` for cli/main.py."""
    base = LIBRARY if path.is_relative_to(LIBRARY) else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts)


def imports_of(path: Path) -> list[tuple[int, str]]:
    """List (line, module without ``mlxfn.``) of everything of ours that a file imports."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the full name of the module"
            # "from mlxfn import tree" imports a module, "from mlxfn.tree import norm" a name
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    ours = ((line, name.replace("mlxfn_cli", "mlxfn.cli")) for line, name in found)
    return [(line, name.removeprefix("mlxfn.")) for line, name in ours if name.startswith("mlxfn.")]


def wrong_arrow(source: str, target: str) -> str | None:
    """Say what is wrong when the module ``source`` imports ``target``, or return None."""
    here, there = room_of(source), room_of(target)
    if here is None or there is None:
        return None  # the package's own __init__, which gathers the public names
    if LEVEL_OF[there] > LEVEL_OF[here]:
        return f"{here} ({NAMES[LEVEL_OF[here]]}) -> {there} ({NAMES[LEVEL_OF[there]]}) points up"
    family, other = here.split(".")[0], there.split(".")[0]
    if LEVEL_OF[here] == LEVEL_OF[there] == LEAVES and family != other:
        return f"{here} -> {there} joins two families of leaves"
    return None


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_point_down_only(path):
    """One arrow upwards, and a leaf can no longer be read, tested or reused on its own."""
    arrows = ((line, wrong_arrow(module_of(path), name)) for line, name in imports_of(path))
    wrong = [f"{path.name}:{line}: {arrow}" for line, arrow in arrows if arrow]
    assert not wrong, "\n".join(wrong)


def test_the_arrows_are_judged_as_the_design_says():
    """The judge itself: up is wrong, down and sideways within a family are right."""
    assert wrong_arrow("losses.chunked", "losses.cross_entropy") is None
    assert wrong_arrow("run", "step.make_step") is None
    assert "points up" in str(wrong_arrow("tree", "state.TrainState"))
    assert "points up" in str(wrong_arrow("data.collate", "data.cursor.Loader"))
    assert "families" in str(wrong_arrow("losses.chunked", "transforms.clip"))
    assert "points up" in str(wrong_arrow("run", "cli.main"))


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_every_module_has_its_room(path):
    """A module outside every room would escape the test of the arrows."""
    assert path.name == "__init__.py" or room_of(module_of(path)), "add it to LEVELS"


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=module_of)
def test_the_page_of_the_rooms_has_every_module_at_its_level(path):
    """Whoever looks for a place reads that page, and a list that nothing checks goes stale."""
    module = module_of(path)
    if path.name == "__init__.py":
        return
    page = (ROOT / "docs" / "explanation" / "rooms.md").read_text(encoding="utf-8")
    sections = {text.partition("\n")[0].lower(): text for text in page.split("\n## ")}
    room = room_of(module) or ""
    shown = room if room == "testing" else module
    level = NAMES[LEVEL_OF[room]]
    assert f"`{shown}`" in sections[level], f"name it in docs/explanation/rooms.md, {level}"


@pytest.mark.parametrize(
    "path", [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda path: path.name
)
def test_no_file_is_longer_than_400_lines(path):
    """What does not fit on a few screens is two things."""
    assert len(path.read_text().splitlines()) <= 400


def uses(path: Path, owner: str, name: str) -> list[int]:
    """List the lines on which ``owner.name`` is named (``owner`` empty: ``name`` is called)."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    if owner:
        named = [node for node in nodes if isinstance(node, ast.Attribute) and node.attr == name]
        return [node.lineno for node in named if ast.unparse(node.value) == owner]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    return [node.lineno for node in calls if ast.unparse(node.func) == name]


@pytest.mark.parametrize(
    ("owner", "name", "allowed"),
    [
        ("mx", "compile", {"step", "evaluate"}),
        ("mx", "seed", set()),
        ("mx", "default_device", {"device", "environment"}),
        ("", "print", {"cli"}),
        ("pickle", "loads", set()),
    ],
)
def test_single_owners(owner, name, allowed):
    """Compilation, printing, randomness and the device each have one place to look for them."""
    strays = [
        f"{module_of(path)}:{line}"
        for path in SOURCES
        if module_of(path).split(".")[0] not in allowed
        for line in uses(path, owner, name)
    ]
    assert not strays, f"{name} belongs to {sorted(allowed) or 'nobody'}"


def test_importing_mlxfn_is_quick_to_start():
    """mlx_lm brings transformers, which takes seconds: nobody pays for it before using it."""
    code = "import sys, mlxfn; print([m for m in ('mlx_lm', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_package_is_installed():
    """The list in pyproject.toml is written by hand; a wheel without a package fails at import."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {folder: name for name, folder in project["package-dir"].items()}
    on_disk = {
        ".".join([folders[top], *path.parent.relative_to(ROOT / top).parts])
        for top in folders
        for path in (ROOT / top).rglob("__init__.py")
    }
    only_data = {name for name in project["packages"] if name.startswith("mlxfn_configs.")}
    assert on_disk == set(project["packages"]) - only_data
