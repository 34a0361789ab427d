"""The command line: one YAML and flags, sections, and one line an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from facerec.alignment.config import AlignConfig
from facerec.cli import main, parse
from facerec.errors import ConfigError
from facerec.naming.pipeline import IdentifyConfig
from facerec.training.config import TrainConfig

PRESETS = Path(__file__).parents[1] / "jobs" / "presets"


def test_a_job_reads_its_own_section_and_flags_win(tmp_path: Path) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text("align: {part: 7, detection: {min_face: 33}}\ntrain: {steps: 5}\n")
    config = parse("align", AlignConfig, ["--config", str(preset), "--part", "9"])
    assert (config.part, config.detection.min_face) == (9, 33)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--unheard-of", "1"], ["unheard-of"]),
        (["--sourc", "1"], ["sourc"]),
        (["--part", "many"], ["part", "many"]),
        (["--detection.min_face", "3"], ["min_face is 3", "--detection.min_face"]),
        (["--config", "missing.yaml"], ["missing.yaml", "no such file"]),
        (["--config", "{}"], ["no such file"]),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(argv: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse("align", AlignConfig, argv)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "text, word",
    [("align: {prt: 1}", "prt"), ("aligned: {}\ntrain: {}", "aligned"), ("a: [", "YAML"), ("- 1", "list")],
)
def test_a_wrong_yaml_key_is_refused(tmp_path: Path, text: str, word: str) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text(text)
    with pytest.raises(ConfigError, match=word):
        parse("align", AlignConfig, ["--config", str(preset)])


@pytest.mark.parametrize(
    "text, words",
    [
        ("seed: 2024-01-01", "has seed: 2024-01-01, which YAML reads as date; a text"),
        ("align: {seed: 2024-01-01T10:00:00Z}", "has align.seed: 2024.*reads as datetime"),
        ("seed: 2024-13-45", "is not valid YAML: month must be in 1..12"),
        ("align: {seed: [1, 2024-01-01]}", r"has align.seed\[1\]: 2024-01-01"),
        ("seed: !!binary aGVsbG8=", "reads as bytes"),
        ("align: {part: .inf}", "has align.part: inf, which YAML reads as float; .* a finite number"),
        ("align: {part: !!set {a, b}}", "reads as set"),
        ("1: 2", "has the key 1, which YAML reads as no text; put it in quotes"),
        ("align: {on: 2}", "has the key True below align"),
        ("align: {2024-01-01: 2}", "has the key datetime.date"),
        ("? [a]\n: b", "is not valid YAML.*unhashable key"),
        ("align:\n\tpart: 3", "is not valid YAML.*cannot start any token"),
        ("part: 3\npart: 4", "is not valid YAML: part stands twice"),
        ("align: {part: 3, part: 4}", "part stands twice"),
        ("a: &a [*a]", "a value that contains itself"),
        ("align: " + "[" * 3000, "is not valid YAML"),
        ("part: 3\n---\npart: 4", "is not valid YAML.*single document"),
        ("part: !!python/object/apply:os.getcwd []", "is not valid YAML"),
        ("\x00", "is not valid YAML"),
    ],
)
def test_yaml_that_is_no_setting_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text(text)
    for job in ("align", "pipeline"):
        with pytest.raises(ConfigError, match=words) as caught:
            parse(job, AlignConfig, ["--config", str(preset)])
        assert "\n" not in str(caught.value)


def test_a_flag_by_a_sections_name_makes_no_section(tmp_path: Path) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text("report: report.json\nembeddings: album\nstrangers: others\n")
    config = parse("identify", IdentifyConfig, ["--config", str(preset)])
    assert (config.report, config.embeddings) == ("report.json", "album")


def test_a_folder_for_a_preset_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: .*is a directory"):
        parse("align", AlignConfig, ["--config", str(tmp_path)])


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.yaml")), ids=lambda preset: preset.name)
def test_every_preset_is_one_that_training_takes(preset: Path) -> None:
    config = parse("train", TrainConfig, ["--config", str(preset)])
    assert config != TrainConfig()


def test_errors_leave_with_2_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: AlignConfig) -> None:
        raise ConfigError(f"part is {config.part}")

    with pytest.raises(SystemExit) as caught:
        main("align", AlignConfig, run, ["--part", "3"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "align: error: part is 3\n"


def test_a_dry_run_prints_the_plan_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[AlignConfig] = []
    main(
        "align",
        AlignConfig,
        ran.append,
        ["--part", "3", "--dry-run"],
        plan=lambda said: {"parts of": said.part},
    )
    assert capsys.readouterr().out.splitlines()[0] == "align: parts of  3"
    assert not ran


def test_a_job_without_a_plan_refuses_a_dry_run_instead_of_running() -> None:
    ran: list[AlignConfig] = []
    with pytest.raises(SystemExit) as caught:
        main("align", AlignConfig, ran.append, ["--dry-run"])
    assert caught.value.code == 2
    assert not ran
