"""The registry: names without imports, helpful errors, and methods of other packages."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from safeguard import registry
from safeguard.errors import UsageFault
from safeguard.registry import ALL, Registry, suggest

BUILTIN = [(known.group, name) for known in ALL for name in known.names()]


@pytest.fixture
def plug_in(monkeypatch):
    """Registers entry points as an installed package would."""

    def install(name: str, value: str) -> None:
        def entry_points(group: str) -> list[EntryPoint]:
            return [EntryPoint(name, value, group)] if group == "safeguard.poems" else []

        monkeypatch.setattr(registry, "entry_points", entry_points)

    return install


def poems() -> Registry:
    return Registry("poem", "safeguard.poems", {"ordered": "collections:OrderedDict"})


def test_get_imports_the_attribute():
    from collections import OrderedDict

    assert poems().get("ordered") is OrderedDict


def test_unknown_names_are_refused_with_a_near_one():
    with pytest.raises(UsageFault, match="unknown poem 'orderd'") as caught:
        poems().get("orderd")
    assert caught.value.fix == "did you mean 'ordered'?"
    assert caught.value.exit_code == 2


def test_suggest_lists_what_is_known_when_nothing_is_near():
    assert suggest("zzz", ["lora", "full"]) == "known: full, lora"


def test_other_packages_add_methods(plug_in):
    plug_in("counted", "collections:Counter")
    found = poems()
    assert found.names() == ["ordered", "counted"]
    assert found.get("counted").__name__ == "Counter"


def test_other_packages_cannot_take_over_a_name(plug_in):
    plug_in("ordered", "collections:Counter")
    with pytest.raises(UsageFault, match="which safeguard already has"):
        poems().get("ordered")


def test_listing_imports_no_method():
    code = "from safeguard.registry import ALL; [r.names() for r in ALL]; import sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_groups_are_distinct_and_ours():
    groups = [known.group for known in ALL]
    assert len(set(groups)) == len(groups)
    assert all(group.startswith("safeguard.") for group in groups)


@pytest.mark.parametrize(("group", "name"), BUILTIN)
def test_every_builtin_can_be_imported(group, name):
    """Where the method wants an optional package, importing it must still work: it is asked for on use."""
    known = next(one for one in ALL if one.group == group)
    assert known.get(name) is not None
