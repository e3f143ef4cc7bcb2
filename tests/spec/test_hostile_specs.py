"""Hostile spec files and overrides are refused with short, printable lines that state the position of each fault."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from raycap.facts.profiles import census_schema
from raycap.plan.expand import expand
from raycap.spec import NamePools
from raycap.spec.facts import NUM_ATTRIBUTES
from raycap.spec.file import SpecError, load_sweep
from raycap.spec.yaml_reader import YamlError
from raycap.spec.yaml_tree import read_yaml
from tests.support.specs import GOOD

ROOT = Path(__file__).parents[2]
POSITION = re.compile(r"(override .+?|/spec\.yaml:[0-9]+:[0-9]+): ")

BOMB = "a0: &a0 [lol, lol]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
IN_A_NAME = {
    "tag": "!!python/object/apply:os.system ['touch evil']",
    "local tag": "!foo x",
    "binary": "!!binary aGk=",
    "set": "!!set {a, b}",
    "empty tag": "! x",
    "recursive alias": "&a [*a]",
    "unknown alias": "*a",
    "deep": "[" * 10_000,
    "deep mapping": "{a: " * 10_000,
    "closed and deep": "[" * 10_000 + "]" * 10_000,
    "long": "x" * 2**20,
    "long in quotes": '"' + "x " * 2**19 + '"',
    "rather long": "x" * 5_000,
    "many": "[" + "1," * 2**19 + "]",
    "rather many": "[" + "1," * 41_000 + "]",
    "exclamation marks": "!" * 2**20,
    "nul": '"a\\0b"',
    "raw nul": "a\0b",
    "escape": '"\\e[31mred"',
    "raw escape": "\x1b[31mred",
    "newline": '"good\\n"',
    "block": "|\n  good",
    "bidi": "'good\u202edoog'",
    "surrogate": '"\\ud800"',
    "beyond unicode": '"\\UFFFFFFFF"',
    "just beyond unicode": '"\\U00110000"',
    "tab": "\tx",
    "look-alike": "gооd",
    "up": "..",
    "dot": ".",
    "far up": "../../x",
    "path": "a/b",
    "absolute": "/etc/passwd",
    "backslash": "a\\b",
    "reserved": "trials",
    "reserved in capitals": "TRIALS",
    "empty": "''",
    "blank": "' '",
    "null": "null",
    "number": "5",
    "huge number": "1" + "0" * 400,
    "nan": ".nan",
    "list": "[good]",
    "mapping": "{good: 1}",
}
TEXTS = {
    "bomb": BOMB + GOOD,
    "merge key": "base: &base {name: x}\n" + GOOD.replace("name: good", "<<: *base"),
    "long key": "x" * 2**20 + ": 1\n" + GOOD,
    "quoted long key": '? "' + "x" * 5_000 + '"\n: 1\n' + GOOD,
    "list as key": "[a]: 1\n" + GOOD,
    "mapping as key": "{a: 1}: 1\n" + GOOD,
    "number as key": "1: 1\n" + GOOD,
    "date as key": "2020-01-01: 1\n" + GOOD,
    "escape as key": '"\\e[31m": 1\n' + GOOD,
    "huge": GOOD + "# " + "x" * 2**21,
    "large": GOOD + "# x\n" * 2**17,
    "blank lines": "\n" * 2**20,
    "empty": "",
    "comments": "# What?\n# That.\n",
    "two documents": GOOD + "---\n" + GOOD,
    "end and more": GOOD + "...\nname: again\n",
    "directive": "%YAML 1.1\n---\n" + GOOD,
    "tag directive": "%TAG ! tag:x,2000:\n---\n" + GOOD,
    "tab": GOOD.replace("  model:", "\tmodel:"),
    "null": "null",
    "scalar": "good",
    "list": "- a\n- b\n",
    "long question": "# " + "why " * 1_000 + "\n" + GOOD,
    "many unknown fields": GOOD + "".join(f"unknown_{number}: 1\n" for number in range(10_000)),
    "many faulty values": GOOD.replace("[0, 1, 2]", str([f"seed {number}" for number in range(5_000)])),
    "a fault at every point": GOOD.replace("num_layers: 2", "num_layer: 2").replace("[0, 1, 2]", str([*range(5_000)])),
    "axis inside a scalar": GOOD + "  name.x: [1]\n  training.seed.x: [1]\n",
    "replaced axis": GOOD.replace(
        "grid:\n", "grid:\n  model.heads.num_heads: [1, 2]\n  model.heads: [{num_heads: 1}]\n"
    ),
    "deep axis": GOOD + "  " + ".".join("x" * 300) + ": [1]\n",
    "empty axis": GOOD + "  '': [1]\n  a..b: [1]\n",
}
ASTRONOMIC = {
    "10^9 points": ("1,000 x 1,000 x 1,000 = 1,000,000,000 points", {f"training.{n}": [*range(1000)] for n in "abc"}),
    "10^30 points": ("10 x 10 x 10 x", {f"training.{n}": [*range(10)] for n in range(30)}),
    "10^12 points": ("10,000 x 10,000 x 10,000 = 1,000,000,000,000 points", {n: [*range(10_000)] for n in "abc"}),
    "10^3,000 points": ("= about 10^3000 points", {n: [*range(10)] for n in range(3_000)}),
}
SIZES = [
    "trial.model.hidden_size=1000000000",
    "trial.model={num_params: 1000000000000}",
    "trial.model.num_layers=1e9",
    "trial.model.heads={num_heads: 1e30}",
    "trial.model.heads={head_size: 1e300}",
    "trial.model.parametrization={kind: mup, base_width: 1e12}",
    "trial.profiles.num_profiles=1e12",
    f"trial.profiles.num_profiles=1{'0' * 400}",
    "trial.profiles.names={first: 1e6}",
    "trial.profiles.seed=1e300",
    "trial.profiles={target_bits: 1e300}",
    "trial.profiles={source: pairs, num_keys: 1e12}",
    "trial.profiles={source: pairs, num_keys: 10_000_000, num_relations: 100}",
    "trial={profiles: {source: strings, num_strings: 1e12}, questions: {kind: names}}",
    "trial={profiles: {source: strings, num_strings: 10_000_000, length: 511}, questions: {kind: names}}",
    "trial.questions={kind: biographies, per_person: 1e9}",
    "trial={profiles: {num_profiles: 10_000_000, num_relations: 17}, questions: {hops: [1, 2, 3]}}",
    "trial={profiles: {num_profiles: 10_000_000}, questions: {kind: biographies, per_person: 1000}}",
    "trial.questions={hops: [1, 2], weights: [1e308, 1e308]}",
    "trial.tokenizer={kind: bpe, vocab_size: 1e12}",
    "trial.training.batch_size=1e12",
    "trial.training.length={exposures: 1e300}",
    f"trial.training.length={{exposures: 1{'0' * 400}}}",
    "trial.training.length={tokens: 1e300}",
    "trial.training.length={steps: 1e12}",
    "trial.training.seed=1e30",
    "trial.training.order_seed=18446744073709551616",
    "trial.training.num_evaluations=1e9",
    "trial.training.evaluation_sample=1e12",
    "trial.training.optimizer.warmup_steps=1e12",
    "trial.training.optimizer.lr=1e400",
    "trial.training.stop={window_exposures: 1e300}",
    "execution.num_workers=1e12",
    "execution.cpus_per_worker=1e300",
    "execution.gpus_per_worker=1e300",
    "execution.replicas=1e12",
    "analysis.calibration={bits_per_param: 1e300, standard_error: 1}",
]
OVERRIDES = [
    "", "=", "=x", "x", "a..b=1", ".a=1", "trial.=3", "trial. =3", "__class__=1", "trial.__class__=1", "grid.=5", "grid=5",
    "trial=[1]", "trial=", "grid.x={a: 1}", "grid.model.hidden_size={a: 1}", "name.x=1", "trial.model.num_layers.x=1",
    "grid.training.seed=[]", "trial.training.curriculum.0=1", "grid.grid.x=1", "trial.training.batch_size=!!int 5",
    "trial.training.batch_size=&a 5", "trial.training.batch_size=*a", "trial.training.batch_size=[",
    "trial.training.batch_size=5\n---\n6", "trial.training.batch_size=0x10", "trial.training.batch_size=017",
    "trial.training.batch_size=2020-01-01", "trial.training.batch_size=" + "9" * 5_000,
    "name=\x1b[31m", "\x1b[31m=1", 'name="\\0"', "name=a\nb: c", "name=\udc80", "\udc80=1", "name=" + "x" * 2**20,
    "x" * 2**20 + "=1", ".".join("x" * 10_000) + "=1",
    "tracking.uri=''", "tracking.uri=' x'", 'tracking.uri="a\\nb"', 'tracking.uri="a\\0b"',
    "tracking.experiment=''", 'tracking.experiment="x\\n"', "tracking.experiment=" + "x" * 300,
    "storage=''", 'storage="a\\0b"', 'storage="runs\\n"', "storage=[a]", "storage=ftp://x", "storage=file://x", "storage=s3://",
    "trial.fill={parent: {trial_id: ../../x}, profiles: {seed: 1}}",
    'trial.fill={parent: {trial_id: "0123456789ab\\n"}, profiles: {}}',
    "trial.fill={parent: {path: ''}, profiles: {seed: 1}}", "trial.profiles={source: disk, path: ''}",
]  # fmt: skip


def refused(folder: Path, content: str | bytes, *overrides: str) -> list[str]:
    """Return the faults of a spec that must be refused, after checking that they are short, printable and have
    positions."""
    path = folder / "spec.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    with pytest.raises(SpecError) as caught:
        expand(load_sweep(str(path), overrides))
    lines = [problem.replace(str(folder), "") for problem in caught.value.problems]
    assert all(POSITION.match(line) and line.isprintable() and len(line) <= 1_010 for line in lines), lines
    assert 0 < len(lines) <= 101
    return lines


@pytest.mark.parametrize("value", IN_A_NAME.values(), ids=IN_A_NAME)
def test_hostile_values_are_refused(tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = refused(tmp_path, GOOD.replace("name: good", f"name: {value}"))
    assert len(lines) == 1
    assert re.match(r"/spec\.yaml:(1|2|3):", lines[0]), lines
    assert os.listdir(tmp_path) == ["spec.yaml"]


@pytest.mark.parametrize(
    "code", [0x202E, 0x202A, 0x2066, 0x200F, 0x61C, 0x200B, 0x2060, 0xAD, 0xFEFF, 0xFFF9, 0xE0041], ids=hex
)
def test_invisible_characters_are_refused_in_comments_and_values(code: int, tmp_path: Path) -> None:
    """The question is the first comment; other comments are stored and shown with the spec."""
    for text in (
        f"# What is{chr(code)} asked?\n{GOOD}",
        f"{GOOD}# a{chr(code)}b\n",
        GOOD.replace("name: good", f"name: g{chr(code)}d"),
    ):
        assert f"U+{code:04X}" in refused(tmp_path, text)[0]
    lines = refused(tmp_path, GOOD, f"trial.profiles={{source: disk, path: 'a{chr(code)}b'}}")
    assert f"U+{code:04X}" in lines[0]


def test_questions_may_be_in_any_language(tmp_path: Path) -> None:
    question = "Wie viele Bits – naïve, 何ビット, كم بت, نمی‌خواهم, 👩‍🔬?"
    (tmp_path / "spec.yaml").write_text(f"# {question}\n{GOOD}", encoding="utf-8")
    assert load_sweep(str(tmp_path / "spec.yaml")).question == question


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_hostile_files_are_refused(tmp_path: Path, text: str) -> None:
    refused(tmp_path, text)


@pytest.mark.parametrize("override", SIZES)
def test_sizes_beyond_their_bounds_are_refused(tmp_path: Path, override: str) -> None:
    lines = refused(tmp_path, GOOD.partition("grid:")[0], override)
    assert any(line.startswith("override ") for line in lines)


def test_the_number_of_values_is_limited_and_overflowing_numbers_are_text() -> None:
    with pytest.raises(YamlError, match="40,000 values"):
        read_yaml(b"[" + b"1," * 41_000 + b"]")
    assert read_yaml(b"a: [1e999, -1e999, 1e3]").value == {"a": ["1e999", "-1e999", 1000]}


@pytest.mark.parametrize("override", OVERRIDES, ids=lambda override: repr(override[:40]))
def test_hostile_overrides_are_refused(tmp_path: Path, override: str) -> None:
    lines = refused(tmp_path, GOOD, override)
    assert any(line.startswith("override ") for line in lines)


@pytest.mark.parametrize(("product", "grid"), ASTRONOMIC.values(), ids=ASTRONOMIC)
def test_a_grid_is_counted_before_it_is_built(tmp_path: Path, product: str, grid: dict[str, list[int]]) -> None:
    lines = refused(tmp_path, f"name: x\ngrid: {grid}\n")
    assert any(line.startswith("/spec.yaml:2:1: grid: ") and product in line for line in lines)


def test_bytes_that_are_not_utf8_are_reported_with_their_position(tmp_path: Path) -> None:
    for content, position, byte in (
        (GOOD.encode() + b"# caf\xe9\n", "14:6", "0xe9"),
        (GOOD.encode("utf-16"), "1:1", "0xff"),
    ):
        (line,) = refused(tmp_path, content)
        assert line.startswith(f"/spec.yaml:{position}: ")
        assert byte in line


def test_line_ends_byte_order_mark_and_document_markers_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(GOOD)
    plain = load_sweep(str(path))
    for text in (GOOD.replace("\n", "\r\n"), GOOD.replace("\n", "\r"), GOOD + "...\n", "\ufeff" + GOOD):
        path.write_bytes(text.encode())
        assert load_sweep(str(path)).points == plain.points
        assert load_sweep(str(path)).question == plain.question
    path.write_text("---\n" + GOOD)
    assert [point.trial for point in load_sweep(str(path)).points] == [point.trial for point in plain.points]


def test_only_regular_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    for path in ("/dev/zero", "/dev/stdin", str(tmp_path), str(tmp_path / "pipe"), str(tmp_path / "link")):
        with pytest.raises(SpecError, match=re.escape(path)):
            load_sweep(path)
    for path in (
        "",
        "x" * 10_000,
        "a\0b",
        "\udc80",
        "\x1b[31m",
        str(tmp_path / "loop"),
        str(tmp_path / "spec.yaml" / "x"),
    ):
        with pytest.raises(SpecError) as caught:
            load_sweep(path)
        assert str(caught.value).isprintable()
    path = tmp_path / "spec.yaml"
    path.write_text(GOOD)
    monkeypatch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(SpecError, match=r"spec\.yaml: .*Permission denied"):
        load_sweep(str(path))


def test_the_name_of_a_file_must_be_a_valid_name_of_a_sweep(tmp_path: Path) -> None:
    for name in ("sp ec", "trials", "\x1b[31m", "\udc80", "x" * 120):
        path = tmp_path / f"{name}.yaml"
        path.write_text(GOOD.replace("name: good\n", ""))
        with pytest.raises(SpecError) as caught:
            load_sweep(str(path))
        assert all(":1:1: name: " in problem and problem.isprintable() for problem in caught.value.problems)


def test_the_largest_sizes_are_planned(tmp_path: Path) -> None:
    """Bounds of sizes that do not require generating people."""
    path = tmp_path / "spec.yaml"
    path.write_text(GOOD)
    largest = (
        "trial.training.batch_size=10_000_000",
        "trial.training.length={exposures: 1e9}",
        f"grid.training.seed={2**63 - 1}",
        "trial.model.num_layers=1000",
        "grid.model.hidden_size=[100_000]",
        "trial.tokenizer={kind: bpe, vocab_size: 262_144}",
    )
    (trial,) = expand(load_sweep(str(path), largest))
    assert trial.parameters.total > 10**14
    solved = ("trial.model={num_layers: 1, num_params: 100_000_000_000, heads: {head_size: 2}}", "grid={}")
    assert expand(load_sweep(str(path), solved))[0].parameters.total == pytest.approx(1e11, rel=1e-3)


def test_the_number_of_attributes_in_the_spec_is_that_of_generated_people() -> None:
    assert len(census_schema(NamePools(), 0).attributes) == NUM_ATTRIBUTES


@pytest.mark.parametrize(
    "name",
    [
        "pipe",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("bomb", "10^12 points", "deep", "raw escape", "folder")
        ),
    ],
)
def test_the_command_refuses_hostile_specs_with_exit_code_2(tmp_path: Path, name: str) -> None:
    path = tmp_path / "spec.yaml"
    if name == "pipe":
        os.mkfifo(path)
    elif name == "folder":
        path.mkdir()
    elif name in ASTRONOMIC:
        path.write_text(f"grid: {ASTRONOMIC[name][1]}\n")
    else:
        path.write_text(TEXTS.get(name) or GOOD.replace("name: good", f"name: {IN_A_NAME[name]}"))
    command = [sys.executable, "-m", "raycap.sweep", str(path), "--plan"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith(str(path))
    assert all(line.isprintable() for line in ended.stderr.splitlines())
    assert "Traceback" not in ended.stderr
