"""Which room may import which: the table of ``docs/architecture.md``, read from the source, checked by syntax tree."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "safeguard"
PAGE = PACKAGE.parent / "docs" / "architecture.md"
HEAVY = {"torch", "torchvision", "diffusers", "transformers", "peft", "accelerate", "open_clip", "timm"}
WITHOUT_TORCH = ("results", "policy", "certify", "report", "cli")


def table() -> dict[str, list[str]]:
    """Room → what it may import, ``all above`` and ``all`` spelled out."""
    rooms: dict[str, list[str]] = {}
    for room, allowed in re.findall(
        r"^\| `(\w+)` \|[^|]*\| ([^|]*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    ):
        words = re.findall(r"`([\w.]+)`", allowed)
        if allowed.startswith("all above but"):
            rooms[room] = [above for above in rooms if above not in words]
        elif allowed == "all above":
            rooms[room] = list(rooms)
        else:
            rooms[room] = ["*"] if allowed == "all" else words
    return rooms


def shared() -> list[str]:
    """The modules that everybody may import."""
    page = PAGE.read_text(encoding="utf-8")
    sentence = re.search(r"^Shared modules[^:]*: (.*?)\.\n\n", page, re.MULTILINE | re.DOTALL)
    assert sentence
    return re.findall(r"`([\w.]+)`", sentence[1])


def module_of(name: str) -> str:
    """The module of ours that an import reads: ``safeguard.seeds.derive`` → ``seeds``, a package → its ``__init__``."""
    parts = name.split(".")[1:]
    while parts and not (PACKAGE.joinpath(*parts).is_dir() or PACKAGE.joinpath(*parts).with_suffix(".py").is_file()):
        parts.pop()
    return ".".join([*parts, "__init__"] if PACKAGE.joinpath(*parts).is_dir() else parts)


def ours(path: Path) -> set[str]:
    """Modules of ours that a file imports; the top of the package, which imports nothing, does not count."""
    return {module_of(name) for name in imports(path) if name.partition(".")[0] == "safeguard"} - {"__init__"}


def name_of(path: Path) -> str:
    """``diffusion.model`` of the file of that module."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def loaded(path: Path) -> set[str]:
    """Modules of ours that a file imports while it is loaded."""
    names = (name for name in imports(path, on_load=True) if name.partition(".")[0] == "safeguard")
    return {module_of(name) for name in names} - {"__init__"}


def imports(path: Path, *, on_load: bool = False) -> Iterator[str]:
    """Modules a file imports, type-checking blocks left out; with ``on_load`` only those outside functions."""

    def walk(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                yield from (f"{child.module}.{alias.name}" for alias in child.names)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            elif not (on_load and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)):
                yield from walk(child)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")))


def files(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py")) if (PACKAGE / room).is_dir() else [PACKAGE / f"{room}.py"]


def within(module: str, allowed: list[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def test_the_page_names_every_room_and_module():
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    alone = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert rooms | alone == set(table()) | {name for name in shared() if "." not in name}


@pytest.mark.parametrize("room", [room for room, allowed in table().items() if allowed != ["*"]])
def test_a_room_imports_only_what_the_table_allows(room):
    allowed = [*table()[room], *shared(), room]
    found = {path: [name for name in sorted(ours(path)) if not within(name, allowed)] for path in files(room)}
    assert [f"{path.relative_to(PACKAGE)} imports {name}" for path, names in found.items() for name in names] == []


def test_no_arrow_leads_upwards():
    rooms = list(table())
    for place, room in enumerate(rooms):
        named = {name.partition(".")[0] for name in table()[room]} - {"*"}
        assert named <= set(rooms[:place]), f"{room} may import what stands below it"


def test_no_modules_import_each_other_in_a_circle():
    arrows = {module: set(loaded(path)) - {module} for path in PACKAGE.rglob("*.py") if (module := name_of(path))}
    while arrows:
        free = {module for module, targets in arrows.items() if not targets & arrows.keys()}
        assert free, f"a circle among {sorted(arrows)}"
        arrows = {module: targets for module, targets in arrows.items() if module not in free}


@pytest.mark.parametrize("name", shared())
def test_shared_modules_import_only_each_other(name):
    path = PACKAGE / f"{name.replace('.', '/')}.py"
    assert [module for module in sorted(ours(path)) if not within(module, shared())] == []


def test_an_import_is_traced_to_its_module():
    assert module_of("safeguard.seeds.derive") == "seeds"
    assert module_of("safeguard.files.write_json") == "files"
    assert module_of("safeguard.reference") == module_of("safeguard.reference.path") == "reference.__init__"
    assert module_of("safeguard.__version__") == "__init__"


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_rooms_without_torch(room):
    found = [
        f"{path.name} imports {module}"
        for path in files(room)
        for module in imports(path, on_load=True)
        if module.partition(".")[0] in HEAVY
    ]
    assert found == []


def test_nothing_is_unpickled_or_evaluated():
    text = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    forbidden = re.compile(
        r"\b(import pickle|torch\.load\(|yaml\.load\(|(?<![.\w])eval\(|(?<![.\w])exec\(|os\.system\()"
    )
    assert {str(path): found[0] for path, source in text.items() if (found := forbidden.search(source))} == {}
