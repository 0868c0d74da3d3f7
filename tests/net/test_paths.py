"""A path template is filled from facts that clients choose, and never names a file elsewhere."""

from __future__ import annotations

import contextlib
import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.mutations import COUNT, mutations
from urelay.errors import AddressError
from urelay.net.address import parse_address
from urelay.net.paths import LONGEST, fill

FACTS = {
    "address": parse_address("192.0.2.7"),
    "port": 80,
    "name": "www.example.com",
    "listener": "lan",
    "source": parse_address("2001:db8::1"),
}


@pytest.mark.parametrize(
    ("template", "path"),
    [
        pytest.param("/run/x.sock", "/run/x.sock", id="no-field"),
        pytest.param("/run/{listener}-{port}.sock", "/run/lan-80.sock", id="two-fields"),
        pytest.param("/run/relay-{low32}", "/run/relay-c0000207", id="socketbox-relay"),
        pytest.param("/run/{address}/{source}", "/run/192.0.2.7/2001:db8::1", id="addresses"),
        pytest.param("/run/{name}", "/run/www.example.com", id="name"),
        pytest.param("/r/#//5_#//6_-#//7_.#//P_", "/r/6553549152-00519.00080", id="groups-of-ipv4"),
    ],
)
def test_fields_are_replaced(template: str, path: str) -> None:
    assert fill(template, **FACTS) == path


def test_groups_of_an_ipv6_address() -> None:
    address = parse_address("2001:db8:0:1:2:3:4:ffff")
    groups = "".join(f"#//{n}_" for n in range(8))
    assert fill(groups, address=address) == "0819303512000000000100002000030000465535"


@pytest.mark.parametrize(
    "field", ["{name}", "{address}", "{low32}", "{port}", "{source}", "{listener}", "#//0_", "#//P_"]
)
def test_a_field_without_a_value_is_refused(field: str) -> None:
    with pytest.raises(AddressError, match="this connection has no"):
        fill(f"/run/{field}")


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a\0b", "a..b", ".hidden", "ü", "a\n", "", "a b"])
def test_a_value_that_could_climb_or_hide_is_refused(name: str) -> None:
    with pytest.raises(AddressError):
        fill("/run/{name}", name=name)


def test_a_value_is_not_read_as_a_template() -> None:
    with pytest.raises(AddressError):
        fill("/run/{name}", name="{listener}", listener="lan")


@pytest.mark.parametrize("extra", [0, 1])
def test_the_longest_path_is_107_bytes(extra: int) -> None:
    template = "/" + "x" * (LONGEST - 4 + extra) + "{name}"
    if extra:
        with pytest.raises(AddressError, match="108 bytes"):
            fill(template, name="abc")
    else:
        assert len(fill(template, name="abc")) == LONGEST


@given(st.text(max_size=40))
def test_no_text_leaves_the_folder(name: str) -> None:
    try:
        path = fill("/run/web/{name}.sock", name=name)
    except AddressError:
        return
    assert posixpath.normpath(path) == path
    assert posixpath.dirname(path) == "/run/web"


def test_mutated_facts_and_templates_name_a_socket_of_the_folder_or_none() -> None:
    """S13: 100,000 seeded mutations, of what clients say and of what a policy says."""
    template = "/run/web/{listener}/{name}-#//7_#//P_.sock"
    facts = {"address": FACTS["address"], "port": 80}
    filled = 0
    for number, data in mutations(
        [b"www.example.com", b"a-b.c"], b"..", b"/", b"{name}", b"#//0_", b"x" * 90
    ):
        name = data.decode("latin-1")
        try:
            path = fill(template, name=name, listener="lan", **facts)
            assert path == f"/run/web/lan/{name}-0051900080.sock"
            assert posixpath.normpath(path) == path
            filled += 1
        except AddressError:
            pass
        if number % 4 == 0:
            with contextlib.suppress(AddressError):
                assert len(fill(f"/run/{name}{{port}}", **FACTS)) <= LONGEST
    assert filled > COUNT / 100
