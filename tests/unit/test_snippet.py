"""greengrader/snippet.py: the fork snippet goes, everything else stays, and what stays is still a valid script."""

import re
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from greengrader.autograder import cut_fork_snippet
from tests.builders import PLAIN_SNIPPET

BODY = "#!/bin/bash\nset -e\ncd /autograder/source\npython3 run_tests.py # all of them\n\n"
README = Path(__file__).resolve().parents[2] / "README.md"
README_SNIPPETS = re.findall(
    r"^<!-- snippet: (\w+) -->\n```bash\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE
)
MARKED = """# >>> GreenGrader
if [ -z "$GREENGRADER" ]; then (
  zip -qr /tmp/g.zip gradescope_data; timeout 60 mosquitto_pub -V 5 -q 1 -t submissions -f /tmp/g.zip
) & fi
# <<< GreenGrader
"""
ONE_LINE = (
    "hostname -I > hostname.txt; mkdir -p gradescope_data && cp -a /autograder/. gradescope_data/ 2>/dev/null || true; "
    "zip -qr gradescope_data.zip gradescope_data; mosquitto_pub -h h -t submissions -f gradescope_data.zip\n"
)


def cut(script: str) -> str:
    """The script without its snippet; there must be one."""
    content, found = cut_fork_snippet(script.encode())
    assert found
    return content.decode()


@pytest.mark.parametrize("snippet", [PLAIN_SNIPPET, MARKED, ONE_LINE, MARKED + PLAIN_SNIPPET, PLAIN_SNIPPET * 2])
@pytest.mark.parametrize("after", ["", "echo done\n", "\n\nexit 0\n", "cd /\n"])
def test_cuts_the_snippet_and_nothing_else(snippet: str, after: str) -> None:
    assert cut(BODY + snippet + after) == BODY + after
    assert cut(snippet + after) == after
    assert cut((BODY + snippet + after).replace("\n", "\r\n")) == BODY + after


@pytest.mark.parametrize(("name", "snippet"), README_SNIPPETS)
def test_cuts_the_snippets_as_they_stand_in_the_readme(name: str, snippet: str) -> None:
    left = cut(f"{BODY}\n{snippet}")
    assert left.rstrip() == BODY.rstrip(), name


def test_the_readme_has_both_snippets() -> None:
    assert [name for name, _ in README_SNIPPETS] == ["plain", "acknowledged"]


@pytest.mark.parametrize(
    "variation",
    [
        PLAIN_SNIPPET.replace("apt-get update && ", "apt-get update\n"),
        PLAIN_SNIPPET.replace("apt-get", "sudo DEBIAN_FRONTEND=noninteractive apt-get -qq"),
        PLAIN_SNIPPET.replace("\n", "\n\n# a comment; with \"quotes' in it\n"),
        PLAIN_SNIPPET.replace("\n", "   # why\n"),
        PLAIN_SNIPPET.replace("mosquitto_pub -h", "timeout 60s mosquitto_pub \\\n    -h").replace(" -t", " \\\n    -t"),
        PLAIN_SNIPPET.replace("broker.example.edu", "<ingestion host>").replace("'se;cr&et'", "<mosquitto password>"),
        PLAIN_SNIPPET.replace("zip -r", "zip -qr -y").replace("data\nmos", "data > /dev/null 2>&1\nmos"),
        PLAIN_SNIPPET.replace("mosquitto_pub", "nohup /usr/bin/mosquitto_pub").replace(".zip\n", ".zip &\n"),
        PLAIN_SNIPPET + "rm -rf /gradescope_data /gradescope_data.zip\n",
        "echo 'forking to GreenGrader'\n" + PLAIN_SNIPPET,
        PLAIN_SNIPPET.replace("\n", "\n\t  "),
        PLAIN_SNIPPET.rstrip("\n"),
    ],
)  # fmt: skip
def test_cuts_the_plain_snippet_as_people_change_it(variation: str) -> None:
    left = cut(BODY + variation)
    assert left.startswith(BODY)
    assert all(line.startswith("#") for line in left[len(BODY) :].split("\n") if line.strip())


@pytest.mark.parametrize(
    "script",
    [
        BODY,
        "",
        "mosquitto_pub -h h -t lab/temperature -f reading.json\n",  # a course about MQTT
        "apt-get install -y mosquitto mosquitto-clients\nmosquitto -d\npython3 test_broker.py\n",
        "hostname -I > hostname.txt\npython3 run_tests.py\n",
        "zip -r gradescope_data.zip gradescope_data\n",
        "# >>> GreenGrader\npython3 run_tests.py\n",  # never closed
        "python3 run_tests.py\n# <<< GreenGrader\n",
        "python3 run_tests.py && mosquitto_pub -t submissions -f gradescope_data.zip\n",
        "if mosquitto_pub -t submissions -f gradescope_data.zip; then echo ok; fi\n",
        "echo 'an open quote\nmosquitto_pub -t submissions -f gradescope_data.zip '\n",
        "#!/usr/bin/env python3\nimport os\nos.system('zip -r gradescope_data.zip gradescope_data')\n",
    ],
)
def test_leaves_everything_else_alone(script: str) -> None:
    assert cut_fork_snippet(script.encode()) == (script.encode(), False)


def test_stops_at_the_first_line_that_is_not_its_own() -> None:
    mine = "hostname -I > hostname.txt\ncat hostname.txt\napt-get install -y mosquitto gcc\n"
    assert cut(mine + PLAIN_SNIPPET + "cp results.json /gradescope_data/\n") == mine


def test_other_shebangs_and_programs() -> None:
    assert cut_fork_snippet(b"\xef\xbb\xbf#!/bin/sh\r\ntrue\r\n") == (b"#!/bin/sh\ntrue\n", False)
    program = b"\x7fELF\0\r\nmosquitto_pub -f gradescope_data.zip\n"
    assert cut_fork_snippet(program) == (program, False)
    latin = b"echo caf\xe9\n"
    assert cut_fork_snippet(latin + PLAIN_SNIPPET.encode()) == (latin, True)


@pytest.mark.parametrize(
    "around",
    [
        "if [ -f /x ]; then\n%sfi\n",
        "if true; then # fork\n\n%s\nfi\n",
        "if true; then\n  true\nelse\n%sfi\n",
        "fork() {\n%s}\nfork\n",
        "for i in 1; do\n%sdone\n",
        "(\n%s) &\n",
        "true &&\n%s",
        "false ||\n%s",
        "case a in\n a)\n%s ;;\nesac\n",
    ],
)
@pytest.mark.parametrize("snippet", [PLAIN_SNIPPET, MARKED])
def test_what_stays_is_still_a_script(around: str, snippet: str) -> None:
    left = cut("#!/bin/bash\n" + around % snippet)
    assert "mosquitto" not in left
    assert subprocess.run(["bash", "-n"], input=left.encode(), check=False).returncode == 0


@pytest.mark.parametrize(
    "line", [" #" * 2000 + '"', "cd / " * 700, "x" * 60_000, '"', "# >>> GreenGrader\n# <<< GreenGrader\n"]
)
def test_a_hostile_script_does_not_take_long(line: str) -> None:
    script = (f"{line}\n" * (62_000 // (len(line) + 1)) + PLAIN_SNIPPET).encode()
    begin_s = time.process_time()
    assert cut_fork_snippet(script)[1]
    assert time.process_time() - begin_s < 2
    assert cut_fork_snippet(script * 10) == (script * 10, False)


WORDS = st.sampled_from([
    *("mosquitto_pub", "zip", "gradescope_data.zip", "hostname", "apt-get", "install", "cd", "-t", "submissions"),
    *("hostname.txt", "python3", "if", "then", "fi", "'", '"', "\\", "#", "&&", "$(", ")", "<<", ">", ";"),
    *("\n", "\n", "\r\n"),
])  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, max_size=25).map(" ".join))
@example("\\")
@example("a\\\n")
def test_a_script_that_never_publishes_comes_back_but_for_its_line_ends(text: str) -> None:
    script = text.replace("mosquitto_pub", "mosquitto_sub")
    assert cut_fork_snippet(script.encode()) == (script.replace("\r\n", "\n").encode(), False)


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, max_size=25).map(" ".join), st.lists(WORDS, max_size=25).map(" ".join))
def test_cutting_only_ever_removes_lines_and_is_done_after_one_pass(before: str, after: str) -> None:
    script = f"{before}\n{PLAIN_SNIPPET}{after}"
    left, _ = cut_fork_snippet(script.encode())
    remaining = iter(script.replace("\r\n", "\n").split("\n"))
    assert all(line in remaining for line in left.decode().split("\n") if line not in ("", ":"))
    assert cut_fork_snippet(left) == (left, False)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_script(script: bytes) -> None:
    assert cut_fork_snippet(script)[1] is False
