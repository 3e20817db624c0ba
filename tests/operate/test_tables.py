"""What a value looks like on an operator's screen."""

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from greengrader.operate import quantities
from greengrader.operate.tables import (
    CELL_CHARS,
    cell,
    details,
    json_line,
    json_pretty,
    printable,
    printable_lines,
    table,
)

AT = datetime(2026, 3, 1, 12, 0, 0, 999_999, tzinfo=timezone(timedelta(hours=5)))


@pytest.mark.parametrize(
    "character", [chr(code) for code in [*range(32), *range(0x7F, 0xA0), 0x202E, 0x2066, 0x200B, 0xD800]]
)
def test_no_character_that_a_terminal_obeys_is_printable(character: str) -> None:
    for shown in (printable(character), cell(character), printable_lines(character)):
        assert character not in shown or character in "\n\t"
    assert json.loads(json_line(character)) == json.loads(json_pretty([character]))[0] == character
    assert character not in json_line(character)


def test_what_people_write_stays_as_it_is() -> None:
    text = "Grüße, 你好, Привет, שלום, 🎉 ~!\\x"
    assert printable(text) == text and printable_lines(text) == text + "\n"
    assert json_line({"a": text}) == json.dumps({"a": text}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), ("", "-"), (True, "yes"), (False, "no"), (0, "0"), (8.0, "8"), (0.1 + 0.2, "0.3"),
     (1234567.5, "1234567.5"), (AT, "2026-03-01T07:00:00Z"), ([], "-"), ([1, 2], "1, 2"), ("a\nb", "a\\nb")],
)  # fmt: skip
def test_a_cell_is_short(value: object, shown: str) -> None:
    assert cell(value) == shown


def test_a_long_text_is_cut_in_a_cell() -> None:
    assert cell("x" * CELL_CHARS) == "x" * CELL_CHARS
    assert cell("x" * (CELL_CHARS + 1)) == "x" * (CELL_CHARS - 1) + "…"


def test_a_table_is_aligned_numbers_to_the_right() -> None:
    rows = [{"name": "a", "score": 10.0, "note": None}, {"name": "long", "score": 5.0, "note": "x"}]
    assert table(rows, ("name", "score", "note")).splitlines() == [
        "name  score  note",
        "a        10  -",
        "long      5  x",
    ]


def test_details_leave_out_what_is_not_known() -> None:
    assert details([("a", None), ("score", 0.0), ("of", "x\x1b"), ("list", [])]) == "  score  0\n  of     x\\x1b"
    assert details([]) == ""


def test_json_has_times_in_utc() -> None:
    assert json_line({"at": AT}) == '{"at": "2026-03-01T07:00:00.999999Z"}'
    assert json_line({"at": datetime(2026, 3, 1, tzinfo=UTC)}) == '{"at": "2026-03-01T00:00:00Z"}'


@pytest.mark.parametrize(
    ("kwh", "shown"),
    [(None, "not measured"), (0.0, "0 µWh"), (1.5e-6, "1.5 mWh"), (2e-9, "2 µWh"), (4e-11, "0.04 µWh"),
     (0.00123456, "1.23 Wh"), (12.0, "12 kWh"), (0.99999e-6, "1 mWh"), (0.9994e-6, "999 µWh"), (12345.0, "12,345 kWh")],
)  # fmt: skip
def test_energy_is_in_the_unit_that_fits(kwh: float | None, shown: str) -> None:
    assert quantities.energy(kwh) == shown


@pytest.mark.parametrize(
    ("grams", "shown"),
    [
        (None, "not measured"),
        (6e-4, "600 µg CO2e"),
        (0.25, "250 mg CO2e"),
        (3.14159, "3.14 g CO2e"),
        (2500.0, "2.5 kg CO2e"),
    ],
)
def test_emissions_are_in_the_unit_that_fits(grams: float | None, shown: str) -> None:
    assert quantities.emissions(grams) == shown


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(None, "not measured"), (0, "0 bytes"), (1, "1 bytes"), (12_288, "12 KiB"), (768 * 1024**2, "768 MiB"),
     (1536 * 1024**2, "1.5 GiB"), (1023 * 1024, "1,023 KiB")],
)  # fmt: skip
def test_memory_is_in_the_unit_that_fits(size_bytes: int | None, shown: str) -> None:
    assert quantities.memory(size_bytes) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "not measured"),
        (0.0, "0 s"),
        (0.2134, "0.213 s"),
        (90.0, "90 s"),
        (600.0, "10 min 0 s"),
        (3725.6, "62 min 6 s"),
    ],
)
def test_a_duration_is_for_people(seconds: float | None, shown: str) -> None:
    assert quantities.duration(seconds) == shown


def test_a_score_has_all_its_digits() -> None:
    assert [quantities.points(score) for score in (None, 8.0, 7.25, -1.0)] == ["none", "8", "7.25", "-1"]
