"""Files are found from the file that names them, read once, told apart by place in the digest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.policy.policies import checked, codes, sound
from urelay.policy.check import check_file


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_paths_start_at_the_file_that_names_them(tmp_path: Path) -> None:
    write(tmp_path, common__sets_urr='set ads = file "lists/ads.txt"\n', common__x_urr="")
    (tmp_path / "common" / "lists").mkdir()
    (tmp_path / "common" / "lists" / "ads.txt").write_text(".ads.example\n", encoding="utf-8")
    policy = sound(tmp_path, 'include "common/sets.urr"\nmatch @ads -> deny\n')
    (route,) = policy.tables["main"]
    assert route.region.destinations is not None
    assert [str(name) for name in route.region.destinations.names] == [".ads.example"]


def test_origins_show_paths_as_they_were_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, rules__main_urr='include "more/x.urr"\n', elsewhere_urr="match 192.0.2.2 -> deny\n")
    (tmp_path / "rules" / "more").mkdir()
    (tmp_path / "rules" / "more" / "x.urr").write_text(
        'include "../../elsewhere.urr"\n\nmatch 192.0.2.1 -> deny\n', encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    policy = check_file("rules/main.urr").policy
    assert policy is not None
    assert {str(route.origin) for route in policy.tables["main"]} == {
        "rules/more/x.urr:3",
        "rules/more/../../elsewhere.urr:1",
    }


def test_a_file_is_read_once_however_it_is_reached(tmp_path: Path) -> None:
    write(
        tmp_path,
        a_urr='include "shared.urr"\n',
        b_urr='include "../' + tmp_path.name + '/shared.urr"\n',
        shared_urr="set web = 80\n",
    )
    os.symlink("shared.urr", tmp_path / "link.urr")
    text = 'include "a.urr"\ninclude "b.urr"\ninclude "link.urr"\nmatch any port @web -> deny\n'
    assert codes(checked(tmp_path, text)) == []


def test_a_pattern_takes_what_is_there_and_not_the_file_it_stands_in(tmp_path: Path) -> None:
    write(tmp_path, a_urr="match 192.0.2.1 -> deny\n", b_urr="match 192.0.2.2 -> deny\n")
    policy = sound(tmp_path, 'include "*.urr"\ninclude "nothing/*.urr"\n')
    assert [Path(document.source.path).name for document in policy.documents] == [
        "main.urr",
        "a.urr",
        "b.urr",
    ]


def test_a_loop_of_includes_is_an_error(tmp_path: Path) -> None:
    found = checked(tmp_path, 'include "a.urr"\n', a_urr='include "b.urr"\n', b_urr='include "a.urr"\n')
    assert codes(found) == ["UR107"]


def test_many_includes_inside_each_other_are_an_error_and_no_traceback(tmp_path: Path) -> None:
    for number in range(400):
        (tmp_path / f"{number}.urr").write_text(f'include "{number + 1}.urr"\n', encoding="utf-8")
    assert codes(checked(tmp_path, 'include "0.urr"\n')) == ["UR107"]


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "no such file"), (b"match any \xff", "byte 11 is not UTF-8"), ("folder", "not a file")],
    ids=["missing", "binary", "folder"],
)
def test_an_unreadable_main_file_is_told(tmp_path: Path, content: bytes | str | None, why: str) -> None:
    path = tmp_path / "main.urr"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.mkdir()
    found = check_file(str(path))
    assert found.policy is None
    (one,) = found.diagnostics
    assert one.code == "UR401"
    assert why in one.message


def test_a_path_with_a_nul_is_told(tmp_path: Path) -> None:
    assert codes(check_file(str(tmp_path / "a\0b"))) == ["UR401"]
    assert codes(checked(tmp_path, 'include "a\0b"\n')) == ["UR110"]


def test_a_fifo_among_the_includes_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert codes(checked(tmp_path, 'include "pipe"\n')) == ["UR401"]


def test_the_digest_follows_contents_and_places_only(tmp_path: Path) -> None:
    def digest(name: str, main: str, **others: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        return sound(folder, main, **others).digest

    main = 'include "a.urr"\ninclude "b.urr"\nset x = file "x.txt"\nmatch @x -> deny\n'
    files = {
        "a_urr": "match 192.0.2.1 -> deny\n",
        "b_urr": "match 192.0.2.2 -> deny\n",
        "x_txt": "192.0.2.3\n",
    }
    first = digest("first", main, **files)
    assert digest("again", main, **files) == first
    assert digest("other-list", main, **{**files, "x_txt": "192.0.2.4\n"}) != first
    assert digest("swapped", main, **{**files, "a_urr": files["b_urr"], "b_urr": files["a_urr"]}) != first
    assert digest("comment", main + "# \n", **files) != first


def test_lists_take_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    policy = sound(
        tmp_path,
        'set x = file "x.txt"\nmatch @x -> deny\n',
        x_txt="\ufeff10.0.0.0/8\r\n.ads.example # why\r\n\r\n",
    )
    (route,) = policy.tables["main"]
    assert route.region.destinations is not None
    assert len(route.region.destinations.prefixes) == len(route.region.destinations.names) == 1
