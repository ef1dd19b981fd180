"""The host's TOML file: what is wrong with it is told at once, with key and value; nothing slips through."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.errors import ConfigError
from serving.host.config import read_config
from serving.host.config_types import Address, HostConfig, Pace

EXAMPLE = Path(__file__).parents[3] / "serving" / "host" / "host.example.toml"
SECTIONS = ("model", "feed", "chain", "strategy", "risk", "loop", "metrics")
ANY_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def toml(value: Any) -> str:
    """A value as TOML writes it; JSON's texts, lists, numbers and flags are TOML's."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def read(folder: Path, values: dict[str, Any]) -> HostConfig:
    file = folder / "host.toml"
    file.write_text("".join(f"{toml(key)} = {toml(one)}\n" for key, one in values.items()), encoding="utf-8")
    return read_config(file)


def example() -> dict[str, Any]:
    return tomllib.loads(EXAMPLE.read_text())


def problems(folder: Path, values: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, values)
    return caught.value.problems


def test_the_example_is_usable_and_begins_with_its_command() -> None:
    assert EXAMPLE.read_text().startswith("# strikeforge-host run --config ")
    assert read_config(EXAMPLE).loop == read_config(EXAMPLE).loop
    uncommented = EXAMPLE.read_text().replace("\n# ", "\n")
    for section in SECTIONS:
        assert f"\n[{section}]\n" in uncommented


def test_the_example_names_every_key() -> None:
    named = EXAMPLE.read_text()
    for section in (field for field in dataclasses.fields(HostConfig) if field.name in SECTIONS):
        kind = type(getattr(read_config(EXAMPLE), section.name))
        for key in dataclasses.fields(kind):
            assert f"\n{key.name} = " in named.replace("# ", ""), f"[{section.name}] {key.name}"


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = read(tmp_path, example())
    assert config.chain.file == tmp_path / "chain.csv"
    assert config.risk.limits == tmp_path / "limits.toml"
    assert config.feed.files == (tmp_path / "ticks/trades.parquet", tmp_path / "ticks/book.parquet")
    assert config.directory == Path("/dev/shm/strikeforge")
    assert config.control_socket.parent == config.directory


def test_it_is_closed_and_frozen(tmp_path: Path) -> None:
    config = read(tmp_path, example())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.loop.core = 1  # type: ignore[misc]


def test_everything_wrong_is_told_at_once_with_key_and_value(tmp_path: Path) -> None:
    values = example()
    values["direktory"] = values.pop("directory")
    values["model"] |= {"model": "No Such", "engine": "ort", "development": "yes"}
    del values["model"]["folder"]
    values["feed"] |= {"pace": {"scaled": -1}, "files": [], "layout": "bloomberg"}
    values["chain"] |= {"quoted": 65, "reference_price": math.nan, "quotd": 8}
    values["strategy"]["quantity"] = 0
    values["loop"] |= {"ring_records": 1000, "priority": 100, "core": 1, "housekeeping_cores": [0, 1]}
    values["metrics"]["address"] = "localhost"
    del values["risk"]
    found = problems(tmp_path, values)
    expected = [
        ("directory", "nothing"), ("direktory", "did you mean 'directory'"), ("[model] model", "'No Such'"),
        ("[model] engine", "'ort'"), ("[model] development", "'yes'"), ("[model] folder", "nothing"),
        ("[feed] pace", "{'scaled': -1}"), ("[feed] files", "[]"),
        ("[feed] layout", "one of binance_l2, lean_ticks"), ("[chain] quoted", "65"),
        ("[chain] reference_price", "nan"), ("[chain] quotd", "did you mean 'quoted'"), ("[strategy] quantity", "0"),
        ("[loop] ring_records", "1000"), ("[loop] priority", "100"), ("[loop] housekeeping_cores", "core 1"),
        ("[metrics] address", "'localhost'"), ("risk", "nothing"),
    ]  # fmt: skip
    for key, value in expected:
        assert any(line.startswith(f"host.toml: {key}: ") and value in line for line in found), (key, found)
    assert len(found) == len(expected), found


@pytest.mark.parametrize(
    ("pace", "expected"),
    [
        ("original", Pace("original")), ("full", Pace("full")), ({"scaled": 2}, Pace("scaled", 2.0)),
        ({"events_per_second": 2e4}, Pace("events_per_second", 2e4)),
    ],
)  # fmt: skip
def test_pace(tmp_path: Path, pace: Any, expected: Pace) -> None:
    values = example()
    values["feed"]["pace"] = pace
    feed = read(tmp_path, values).feed
    assert feed.pace == expected
    assert feed.lossless == (pace == "full")


@pytest.mark.parametrize(
    "pace", ["slow", 2, True, {"scaled": 0}, {"scaled": True}, {"scaled": 1, "events_per_second": 1}]
)
def test_other_paces_are_refused(tmp_path: Path, pace: Any) -> None:
    values = example()
    values["feed"]["pace"] = pace
    (found,) = problems(tmp_path, values)
    assert found.startswith("host.toml: [feed] pace: found ")


def test_multicast(tmp_path: Path) -> None:
    values = example()
    values["feed"] = {"kind": "multicast", "lines": ["239.1.1.1:30001", "239.1.1.2:2"], "recovery": "[::1]:4"}
    feed = read(tmp_path, values).feed
    assert feed.lines == (Address("239.1.1.1", 30001), Address("239.1.1.2", 2))
    assert feed.recovery == Address("::1", 4)
    assert [str(one) for one in (*feed.lines, feed.recovery)] == ["239.1.1.1:30001", "239.1.1.2:2", "[::1]:4"]
    for lines in (["10.0.0.1:1"], ["239.1.1.1"], ["239.1.1.1:0"], ["239.1.1.1:70000"], ["239.1.1.1:1"] * 2, "x", [1],
                  ["239.1.1.1:1", "239.1.1.2:1", "239.1.1.3:1"], ["host:1"], ["239.1.1.1:²"],
                  ["[ff15::1]:2"]):  # fmt: skip
        values["feed"]["lines"] = lines
        assert all("[feed] lines" in one for one in problems(tmp_path, values))


@pytest.mark.parametrize("interface", ["a,b,c", "a,", ","])
def test_as_many_interfaces_as_lines_or_one(tmp_path: Path, interface: str) -> None:
    values = example()
    values["feed"] = {"kind": "multicast", "lines": ["239.1.1.1:1", "239.1.1.2:1"], "interface": interface}
    (found,) = problems(tmp_path, values)
    assert found.startswith(f"host.toml: [feed] interface: found {interface!r}, expected one interface for all lines")
    for fine in ("a", "a,b", "a, b"):
        values["feed"]["interface"] = fine
        assert read(tmp_path, values).feed.interface == fine


def test_a_key_of_another_kind_of_feed_or_strategy_is_refused(tmp_path: Path) -> None:
    values = example()
    values["feed"] = {"kind": "external", "files": ["a"], "recovery": "10.0.0.1:1", "lines": ["239.1.1.1:1"]}
    values["strategy"]["kind"] = "null"
    found = problems(tmp_path, values)
    assert sum("[feed] files" in one or "[feed] recovery" in one or "[feed] lines" in one for one in found) == 3
    assert sum("[strategy]" in one and "no such number" in one for one in found) == 5


@pytest.mark.parametrize("kind", ["external", "multicast"])
def test_a_live_feed_that_dies_is_noticed_unless_said_otherwise(tmp_path: Path, kind: str) -> None:
    values = example()
    assert read(tmp_path, values).feed.silence_s is None  # a replay may wait for hours of no trading
    values["feed"] = {"kind": kind} | ({"lines": ["239.1.1.1:30001"]} if kind == "multicast" else {})
    assert read(tmp_path, values).feed.silence_s == 5.0
    assert read(tmp_path, values).feed.lag_s is None
    values["feed"] |= {"silence_s": 60.0, "lag_s": 2.5}
    assert (read(tmp_path, values).feed.silence_s, read(tmp_path, values).feed.lag_s) == (60.0, 2.5)
    values["feed"] = example()["feed"] | {"lag_s": 2.5}
    assert any("[feed] lag_s" in one for one in problems(tmp_path, values))


def test_real_time_priority_needs_a_core(tmp_path: Path) -> None:
    values = example()
    values["loop"]["priority"] = 50
    assert "`core` beside it" in problems(tmp_path, values)[0]
    values["loop"]["core"] = 1
    assert read(tmp_path, values).loop.priority == 50


def test_the_feed_keeps_off_the_loops_core(tmp_path: Path) -> None:
    values = example()
    values["loop"]["core"] = values["feed"]["core"] = 1
    assert problems(tmp_path, values) == ["host.toml: [feed] core: 1 is the loop's own"]


@pytest.mark.parametrize("raw", [b"a = ", b"\xff", b"[model\n", b"x = 1\nx = 2", b"#" * (1 << 20) + b"#"])
def test_what_is_no_toml_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "host.toml").write_bytes(raw)
    with pytest.raises(ConfigError):
        read_config(tmp_path / "host.toml")


def test_an_absent_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.toml", tmp_path):
        with pytest.raises(ConfigError, match="can't be read"):
            read_config(path)


def test_a_directory_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    values = example() | {"directory": "/dev/shm/" + "x" * 90}
    assert "[" not in problems(tmp_path, values)[0].split(":")[1]


ODD = st.one_of(
    st.none().map(lambda _: []), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=8),
    st.lists(st.integers(0, 9), max_size=3), st.dictionaries(st.text("abc", min_size=1), st.integers(0, 9), max_size=2),
)  # fmt: skip


@ANY_FOLDER
@given(st.sampled_from(("", *SECTIONS)), st.text(min_size=1, max_size=12), ODD)
def test_an_unknown_key_anywhere_is_named(tmp_path: Path, section: str, key: str, value: Any) -> None:
    values = example()
    place = values[section] if section else values
    known = set(place) | {field.name for field in dataclasses.fields(HostConfig)}
    if section:
        known |= {field.name for field in dataclasses.fields(type(getattr(read_config(EXAMPLE), section)))}
    if key in known:
        return
    place[key] = value
    (found,) = problems(tmp_path, values)
    assert "unknown key" in found
    assert (key if key.isprintable() else repr(key)) in found


@ANY_FOLDER
@given(st.data())
def test_any_value_anywhere_is_taken_as_it_is_or_named(tmp_path: Path, data: st.DataObject) -> None:
    """Never another error than ConfigError, never silently another value."""
    values = copy.deepcopy(example())
    section = data.draw(st.sampled_from(SECTIONS))
    key = data.draw(st.sampled_from(sorted(values[section])))
    value = data.draw(ODD)
    values[section][key] = value
    found: list[str] = []
    try:
        config = read(tmp_path, values)
    except ConfigError as error:
        found = error.problems or ["an error without a problem"]
    if found:  # which keys there may be depends on `kind`
        assert key == "kind" or all(f"[{section}] {key}: " in problem for problem in found), found
        return
    taken = getattr(getattr(config, section), key)
    if isinstance(taken, Path):
        assert taken == tmp_path / value
    elif key not in ("files", "pace", "kind"):
        assert taken == value
        assert isinstance(taken, float) or type(taken) is type(value)
