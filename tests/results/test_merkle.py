"""The tree over rows is that of RFC 6962: known roots, and no two sets of rows with one root."""

from __future__ import annotations

import hashlib

import pytest

from safeguard.results.merkle import leaf, root

# Inputs and roots of the reference tests of Certificate Transparency.
INPUTS = [bytes.fromhex(text) for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")]
ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    4: "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    6: "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
}


@pytest.mark.parametrize("count", ROOTS)
def test_roots_are_those_of_the_standard(count: int) -> None:
    assert root(INPUTS[:count]).hex() == ROOTS[count]


def test_no_leaves_have_the_hash_of_nothing() -> None:
    assert root([]) == hashlib.sha256(b"").digest()


def test_a_leaf_is_no_node_and_order_counts() -> None:
    inner = b"".join(hashlib.sha256(b"\x00" + each).digest() for each in INPUTS[:2])
    assert root([inner]) != root(INPUTS[:2])
    assert root(INPUTS[:2]) != root(INPUTS[1::-1])


def test_a_leaf_holds_its_unit_and_its_keys_in_no_order() -> None:
    assert leaf("a", {"x": 1, "y": "é"}) == leaf("a", {"y": "é", "x": 1}) != leaf("b", {"x": 1, "y": "é"})
