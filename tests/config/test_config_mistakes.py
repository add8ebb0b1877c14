"""Configurations that are wrong: what is said about them, where, and that nothing else happens."""

import json
import os
import re
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llama import config
from llama.config import tree
from llama.config.sections import MOST_CHARACTERS, MOST_TAGS
from llama.pinpoint import answers

TESTDATA = Path(__file__).parent.parent / "testdata"
INVALID = sorted(path.name for path in TESTDATA.glob("invalid-*.yaml"))
VALID = ("simple.yaml", "full.yaml", "extended.yaml")
_EXPECT = re.compile(r"# expect: (\d+): (.*)")


@pytest.fixture(scope="module")
def testdata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the test files to where their modes are ours: git keeps no secrets secret."""
    directory = tmp_path_factory.mktemp("testdata")
    for source in TESTDATA.iterdir():
        shutil.copy(source, directory)
        os.chmod(directory / source.name, 0o644 if source.name == "open.keys" else 0o640)
    return directory


@pytest.mark.parametrize("name", INVALID)
def test_invalid(name: str, testdata: Path) -> None:
    """Every mistake gives exactly the messages, at the lines, that the file itself expects."""
    path = testdata / name
    expected = []
    for line in path.read_bytes().decode("utf-8", "replace").splitlines():
        if not (match := _EXPECT.fullmatch(line)):
            break
        expected.append((int(match[1]), match[2].replace("DIR", str(testdata))))
    assert expected, f"{name} does not begin with a line `# expect: LINE: message`"
    service = name.split("-")[1]
    with pytest.raises(config.ConfigErrors) as refused:
        config.load(str(path), service)
    assert [(m.line, m.message) for m in refused.value.mistakes] == expected
    assert str(refused.value) == "\n".join(f"{path}:{line}: {text}" for line, text in expected)


class FileTests(SynchronousTestCase):
    """Files that cannot be read at all."""

    def refused(self, path: str) -> str:
        """Return what is said when the file is loaded."""
        return str(self.assertRaises(config.ConfigErrors, config.load_collector, path))

    def test_missing(self) -> None:
        """A file that is not there is one line."""
        self.assertEqual(
            self.refused("/no/such"), "/no/such: cannot be read: No such file or directory"
        )

    def test_directory(self) -> None:
        """So is a directory."""
        path = self.mktemp()
        os.mkdir(path)
        self.assertEqual(self.refused(path), f"{path}: cannot be read: Is a directory")

    def test_no_name(self) -> None:
        """So is what cannot be a file's name."""
        self.assertEqual(self.refused("a\0b"), "a\0b: is no file name")

    def test_permission(self) -> None:
        """So is a file that is not ours to read."""
        if os.geteuid() == 0:
            path = self.mktemp()
            Path(path).write_text("reflector01: {}\n")
            self.assertEqual(len(config.load_collector(path).tests), 1)  # root reads everything
            return
        path = self.mktemp()
        Path(path).touch(mode=0)
        self.assertEqual(self.refused(path), f"{path}: cannot be read: Permission denied")

    def test_endless(self) -> None:
        """A device without end is read only as far as a configuration could be long."""
        if not stat.S_ISCHR(os.stat("/dev/zero").st_mode):
            self.fail("/dev/zero is no device here")
        self.assertIn("larger than 64 MiB", self.refused("/dev/zero"))


class CutShortTests(SynchronousTestCase):
    """Files that end amid a line: an editor left them so, or they are still being written."""

    SAID = "ends amid a line: is it still being written? end the last line with a newline"
    CLOSED = "port: 8100\nlegacy: no\nallow:\n  - 192.0.2.0/24\nkeys:\n  - file: keys\n"
    KEYS = f"k1 {'ab' * 32}\nk2 {'cd' * 32}\n"

    def setUp(self) -> None:
        """A directory with a file of keys."""
        self.there = Path(self.mktemp())
        self.there.mkdir()
        self.path = self.there / "service.yaml"
        self.keys = self.write("keys", self.KEYS)

    def write(self, name: str, text: str) -> Path:
        """Return the path of a file with this text, for its owner alone."""
        path = self.there / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    def refused(self) -> str:
        """Return what is said when a reflector reads its file again."""
        return str(
            self.assertRaises(
                config.ConfigErrors, config.load_reflector, str(self.path), again=True
            )
        )

    def test_when_it_starts(self) -> None:
        """A service starts with such a file, and says so."""
        for text, line in (("port: 8100", 1), ("port: 8100\n# the end", 2)):
            self.write("service.yaml", text)
            self.assertEqual(
                list(map(str, config.load_reflector(str(self.path)).notes)),
                [f"{self.path}:{line}: {self.SAID}"],
            )
        self.write("service.yaml", self.CLOSED)
        self.write("keys", self.KEYS.rstrip())
        (note,) = config.load_reflector(str(self.path)).notes
        self.assertEqual(str(note), f"{self.keys}:2: {self.SAID}")

    def test_when_it_is_read_again(self) -> None:
        """No service takes one in exchange for what it has, wherever it ends."""
        self.write("service.yaml", self.CLOSED)
        whole = config.load_reflector(str(self.path), again=True)
        self.assertEqual((len(whole.allow), len(whole.keys), whole.notes), (1, 2, ()))
        for length in range(len(self.CLOSED)):
            text = self.CLOSED[:length]
            self.write("service.yaml", text)
            if text and not text.endswith("\n"):
                line = text.count("\n") + 1
                self.assertEqual(self.refused(), f"{self.path}:{line}: {self.SAID}")
        for text in ("", "\n", "# soon\n"):
            self.write("service.yaml", text)
            self.assertIn("is empty, expected a configuration", self.refused())
        for load in config.load_collector, config.load_scraper:
            self.write("service.yaml", "c1: {}\nc2: {}")
            error = self.assertRaises(config.ConfigErrors, load, str(self.path), again=True)
            self.assertEqual(str(error), f"{self.path}:2: {self.SAID}")

    def test_keys(self) -> None:
        """A key that may be half of one takes no other's place."""
        self.write("service.yaml", self.CLOSED)
        for length in range(len(self.KEYS)):
            if (text := self.KEYS[:length]).endswith("\n"):
                continue
            self.write("keys", text)
            line = text.count("\n") + 1
            said = f"{self.keys}:{line}: {self.SAID}" if text else "has no key in it"
            self.assertIn(said, self.refused())

    def test_line_ends(self) -> None:
        """Lines may end as those of other systems do."""
        self.write("keys", self.KEYS.replace("\n", "\r\n"))
        for end in ("\r\n", "\r"):
            self.path.write_bytes(self.CLOSED.replace("\n", end).encode())
            read = config.load_reflector(str(self.path), again=True)
            self.assertEqual((len(read.keys), read.notes), (2, ()))

    def test_tokens(self) -> None:
        """A token alone in its file needs no line end, then or later; nothing is none."""
        self.write("service.yaml", "api: {token_file: token}\n")
        for text in ("s3cret", "s3cret\n", "s3cret\n# of the page"):
            self.write("token", text)
            for again in (False, True):
                read = config.load_reflector(str(self.path), again=again)
                self.assertEqual((read.api_token, read.notes), ("s3cret", ()))
        self.write("token", "")
        self.assertIn("has no secret in its first line", self.refused())


class BombTests(SynchronousTestCase):
    """Small files that unfold into large ones."""

    def refused(self, text: str, service: str = "collector") -> config.ConfigErrors:
        """Return the error of loading a file with this text."""
        path = self.mktemp()
        Path(path).write_text(text)
        error: config.ConfigErrors = self.assertRaises(
            config.ConfigErrors, config.load, path, service
        )
        return error

    def accepted(self, text: str) -> config.CollectorConfig:
        """Return what a collector's file with this text says."""
        path = self.mktemp()
        Path(path).write_text(text)
        return config.load_collector(path)

    def test_lists_of_aliases(self) -> None:
        """A billion laughs are one mistake: nothing unfolds what it does not need."""
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
        error = self.refused("\n".join(lines))
        self.assertLess(len(error.mistakes), 100)

    def test_values_without_end(self) -> None:
        """A file of more values than any has is refused before memory is filled with them."""
        self.patch(tree, "MAX_VALUES", 1000)
        self.patch(tree.yaml, "compose", None)
        for text, line in (("- a\n" * 1_000_000, 2000), ("[" + "a, " * 1_000_000 + "]", 1)):
            said = [(each.line, each.message) for each in self.refused(text).mistakes]
            what = "more than 2,000 keys and values up to here, expected a configuration"
            self.assertEqual(said, [(line, what)])

    def test_many_names_that_are_not_defined(self) -> None:
        """Each is compared with a few of thousands, and what it may have meant is still found."""
        compared: list[int] = []
        compare = tree.difflib.get_close_matches

        def counted(word: str, names: list[str], *rest: float) -> list[str]:
            compared.append(len(names))
            return compare(word, names, *rest)

        self.patch(tree.difflib, "get_close_matches", counted)
        sets = ", ".join(
            f"{letter}et{n}: [{{ip: 192.0.2.1}}]" for letter in "st" for n in range(40)
        )
        wrong = ", ".join(f"{{targets: tett{n}}}" for n in range(40))
        error = self.refused(f"targets: {{{sets}}}\ntests: [{wrong}]\n")
        said = [each.message for each in error.mistakes]
        self.assertEqual(len([each for each in said if "did you mean 'tet" in each]), 40)
        self.assertLessEqual(max(compared), tree.MOST_COMPARED)

    def test_names_alike(self) -> None:
        """Of hundreds of names that begin alike the one that was meant is found."""
        sets = ", ".join(f"paris-edge-{n:03}: [{{ip: 192.0.2.1}}]" for n in range(1, 301))
        error = self.refused(f"targets: {{{sets}}}\ntests: [{{targets: paris-egde-250}}]\n")
        self.assertIn("did you mean 'paris-edge-250'?", error.mistakes[0].message)

    def test_merges_of_merges(self) -> None:
        """Merge keys that merge each other twice are resolved once."""
        lines = ["host0: &h0 {a: b}"]
        lines += [f"host{n}: &h{n} {{<<: [*h{n - 1}, *h{n - 1}], t{n}: x}}" for n in range(1, 60)]
        path = self.mktemp()
        Path(path).write_text("\n".join(lines))
        (test,) = config.load_collector(path).tests
        self.assertEqual(len(test.targets[-1].tags), 60 + 2)

    def test_most_tags(self) -> None:
        """As many tags as may be, as long as may be, are taken, and nothing of them is left out later."""
        tags = {f"{n:02}".ljust(1000, "k"): "x" * MOST_CHARACTERS for n in range(128)}
        ours, theirs = (json.dumps(dict(list(tags.items())[n : n + MOST_TAGS])) for n in (0, 64))
        path = self.mktemp()
        Path(path).write_text(
            f"source_tags: {ours}\ntests: [{{targets: lab}}]\n"
            f"targets: {{lab: [{{ip: 192.0.2.1, tags: {theirs}}}]}}\n"
        )
        (test,) = config.load_collector(path).tests
        self.assertEqual(len(test.targets[0].tags), 2 * MOST_TAGS + 2)
        self.assertLessEqual(len(test.targets[0].tags), answers.MOST_TAGS)
        self.assertLessEqual(MOST_CHARACTERS, answers.MOST_CHARACTERS)

    def test_chain_of_merges(self) -> None:
        """A chain of merge keys ends before the stack does, whichever end it is entered at."""
        for count, wrong in ((50, False), (3000, True)):
            hosts = [f"  h{n}: &h{n} {{<<: *h{n - 1}, a: b}}" for n in range(1, count)]
            text = "\n".join(
                ["anchors:", "  h0: &h0 {a: b}", *hosts, "tests: [{targets: lab}]",
                 f"targets: {{lab: [{{ip: 192.0.2.1, tags: *h{count - 1}}}]}}"]
            )  # fmt: skip
            messages = [m.message for m in self.refused(text).mistakes]
            self.assertEqual("a chain of more than 100 merges (<<)" in messages, wrong)

    def test_merge_of_itself(self) -> None:
        """A mapping that merges itself gains nothing by it."""
        path = self.mktemp()
        Path(path).write_text("reflector01: &a\n  <<: *a\n  rack: 01\n")
        (test,) = config.load_collector(path).tests
        self.assertEqual(test.targets[0].tags["rack"], "01")

    def test_tests_times_targets(self) -> None:
        """Many tests over many targets end at the most flows that a collector may have."""
        targets = "".join(f"    - ip: 10.0.{n >> 8}.{n & 255}\n" for n in range(4000))
        tests = "".join("  - {targets: lab, port_group: wide}\n" for _ in range(2000))
        groups = "port_groups: {wide: [{port: default, count: 60000}]}\n"
        error = self.refused(f"{groups}tests:\n{tests}targets:\n  lab:\n{targets}")
        (mistake,) = error.mistakes
        self.assertIn("expected at most 4,000,000", mistake.message)

    def test_classes_times_sizes(self) -> None:
        """Tests end at the most sessions that replies can be told apart by, and a reload's besides."""
        classes, sizes = list(range(64)), list(range(44, 172))
        tests = [
            f"{{targets: lab, dscp: {classes}, sizes: {sizes}, port_group: g{n}}}" for n in range(5)
        ]
        groups = [f"g{n}: [{{port: default, count: 1}}]" for n in range(5)]
        start = f"port_groups: {{{', '.join(groups)}}}\n"

        def text(tests: list[str], targets: str) -> str:
            lines = "".join(f"  - {test}\n" for test in tests)
            return f"{start}targets: {{lab: [{targets}]}}\ntests:\n{lines}"

        one = "{ip: 192.0.2.1}"
        (mistake,) = self.refused(text(tests[:4], one)).mistakes
        self.assertEqual(mistake.line, 7)
        self.assertIn("UDP tests up to this one have 32,768 sessions", mistake.message)
        self.assertIn("expected at most 32,767; give them fewer classes or sizes", mistake.message)
        others = tests[:3] + [test.replace("targets", "probe: icmp, targets") for test in tests[3:]]
        self.accepted(text(others, one))
        for more in ("{ip: '2001:db8::1'}", "{ip: 192.0.2.1, tags: {rack: '2'}}"):
            self.assertIn("sessions", str(self.refused(text(tests[:2], f"{one}, {more}"))))
        self.accepted(text(tests[:2], f"{one}, {{ip: 192.0.2.2}}"))

    def test_prefixes_times_ssids(self) -> None:
        """Keys for many prefixes with many SSIDs end at what a reflector remembers of them."""
        keys = Path(self.mktemp()).absolute()
        keys.write_text(f"a1 {'11' * 32}\n")
        keys.chmod(0o600)
        prefixes = ", ".join(f"10.{n >> 8}.{n & 255}.0/24" for n in range(1001))
        ssids = ", ".join(map(str, range(1, 1001)))
        text = f"keys:\n  - file: {keys}\n    prefixes: [{prefixes}]\n    ssids: [{ssids}]\n"
        (mistake,) = self.refused(text, "reflector").mistakes
        self.assertIn("more than 1,000,000 combinations", mistake.message)

    def test_options_of_a_plugin(self) -> None:
        """Options that nobody knows are bounded too."""
        bomb = "&a [x, x, x, x, x, x, x, x, x, x]"
        lists = ", ".join(["*a"] * 5000)
        text = f"collectors: [c1]\nwriters:\n  - {{type: mine, a: {bomb}, b: [{lists}]}}\n"
        (mistake,) = self.refused(text, "scraper").mistakes
        self.assertIn("too many", mistake.message)


def check_total(directory: Path, data: bytes) -> None:
    """Fail unless every loader gives a configuration or `ConfigErrors`, one line a mistake."""
    path = directory / "random.yaml"
    path.write_bytes(data)
    lines = data.count(b"\n") + data.count(b"\r") + data.count(b"\x85") + data.count(b"\xa8") + 2
    for service in (None, *config.SERVICES):
        mistakes: tuple[config.Mistake, ...] = ()
        refused = False
        try:
            hash(config.load(str(path), service))
        except config.ConfigErrors as errors:
            refused, mistakes = True, errors.mistakes
        assert bool(mistakes) is refused
        for mistake in mistakes:
            assert len(str(mistake).splitlines()) == 1, str(mistake)
            assert 0 <= mistake.line <= lines, str(mistake)


_SETTINGS = settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
#: What configurations are made of, blanks between.
_MADE_OF = """tests targets ports port_groups rate_limits api bind limits summarization interval
keep lab default EF 0 1 -1 01 0x10 ~ null true .inf 1e400 192.0.2.1 ::1 reflector01 both 6 - ? : ,
[ ] { } & * << ! !!python/object | > " ' # % @ ` &a *a writers collectors type store sqlite path
keys file sessions source"""
_WORDS = st.sampled_from(
    [*_MADE_OF.split(), "", "\t", "\n", "\r", "\x85", "\u2028", "\ud800", "\ufeff", "\x00"]
)


@_SETTINGS
@given(text=st.text(max_size=200))
def test_random_text(text: str, testdata: Path) -> None:
    """Random text is a configuration or a list of mistakes, never anything else."""
    check_total(testdata, text.encode("utf-8", "surrogatepass"))


@_SETTINGS
@given(data=st.binary(max_size=100))
def test_random_octets(data: bytes, testdata: Path) -> None:
    """So are random octets."""
    check_total(testdata, data)


@_SETTINGS
@given(words=st.lists(st.one_of(_WORDS, st.sampled_from(["\n", "\n  ", ": "])), max_size=60))
def test_random_yaml(words: list[str], testdata: Path) -> None:
    """So are the words that configurations are made of, in any order."""
    check_total(testdata, " ".join(words).encode("utf-8", "surrogatepass"))


@_SETTINGS
@given(
    name=st.sampled_from(VALID),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), _WORDS), min_size=1, max_size=5),
)
def test_mutations(name: str, edits: list[tuple[float, int, str]], testdata: Path) -> None:
    """So are right configurations in which anything was replaced by anything."""
    text = (TESTDATA / name).read_text()
    for where, length, word in edits:
        start = int(where * len(text))
        text = text[:start] + word + text[start + length :]
    check_total(testdata, text.encode("utf-8", "surrogatepass"))
