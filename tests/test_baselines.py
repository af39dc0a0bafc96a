"""What a run bought, on a real tiny run that has something to learn: rejection sampling of one digit."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.runs import DIGIT, DIGIT_DRAWS, digit_tasks, ssd_loop, tiny_config, tree

pytestmark = pytest.mark.slow

KILL_AT = str(Path(__file__).parent / "crash/kill_at.py")

SWEEP = {"temperatures": [0.5, 1.0], "top_k": [0], "top_p": [1.0]}


def configured(folder: Path, model: Path) -> None:
    """Every answer is 7, of prompts and panels alike; what does not say so is not trained on."""
    panels = digit_tasks(folder, {"train": ["7"] * 30, "heldout": ["7"] * 40, "report": ["7"] * 30})
    prompts = panels.pop("train")
    tiny_config(
        folder,
        model,
        "transformers",
        prompts={**prompts, "limit": 30},
        sample=DIGIT_DRAWS,
        filter={"filters": ["fails_tests"]},
        train={"learning_rate": 0.01, "probe_margin": 10.0, "epochs": 8},
        evaluate={
            "panels": ["heldout"],
            "sources": panels,
            "limit": 40,
            "samples_per_problem": 4,
            "max_new_tokens": 4,
        },
        baselines=SWEEP,
        rounds=2,
    )


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learned")
    configured(folder, tiny.build("llama", tmp_path_factory.mktemp("model")))
    done = ssd_loop("--config", "tiny.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def state(folder: Path) -> dict[str, Any]:
    shown = ssd_loop("status", "tiny", "--json", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


def test_only_what_passed_is_trained_on(learned: Path) -> None:
    manifest = json.loads((learned / "rounds/tiny/round_001/filter/manifest.json").read_text())
    metrics = manifest["metrics"]
    assert metrics["kept"] + metrics["dropped_fails_tests"] == 1920
    assert 0 < metrics["kept"] < 192


def test_the_best_round_is_compared_with_the_base_at_its_best(learned: Path) -> None:
    found = state(learned)
    best = int(found["best"].removeprefix("round_"))
    assert best > 0
    assert found["gains"]["verdict"].startswith("gain on heldout")
    final = found["final"]
    assert (final["panel"], final["problems"], final["round"]) == ("report", 30, best)
    assert set(final["base"]) == {"as measured", "as sampled", "best decoding", "resampled", "revised"}
    assert set(final["trained"]) == {"as measured", "as sampled", "best decoding"}
    against = final["compared"]["best decoding"]
    assert 0.0 < against["low"] < against["mean"] < against["high"]
    for stage in ("sweep", "final"):
        assert found["rounds"][0]["stages"][stage]["state"] == "finished"
        assert found["rounds"][best]["stages"][stage]["state"] == "finished"
        assert found["rounds"][best]["stages"][stage]["metrics"]["tokens"] > 0


def test_status_shows_it_in_words_and_tables(learned: Path) -> None:
    shown = ssd_loop("status", "tiny", cwd=learned).stdout
    assert "that nothing was tuned on" in shown
    assert "against the base, best decoding: +" in shown
    assert "Where the gain is" in shown


def test_the_card_beside_the_weights_says_what_they_bought(learned: Path) -> None:
    card = (learned / "checkpoints/tiny/best/merged/README.md").read_text()
    assert "## What it bought" in card
    assert "- on report, which nothing was tuned on, against the base, best decoding: +" in card
    assert "\n- monitors: " in card
    assert "its prompts' tests as the only judge" in card  # not "without a verifier"
    first = (learned / "checkpoints/tiny/round_001/merged/README.md").read_text()
    assert "after 1 round of simple" in first


def test_a_lost_final_comes_back_with_the_same_bytes_and_the_run_is_sound(learned: Path) -> None:
    before = tree(learned)
    shutil.rmtree(learned / "rounds/tiny/round_000/final")
    assert ssd_loop("--config", "tiny.yaml", cwd=learned).returncode == 0
    assert tree(learned) == before
    checked = ssd_loop("verify", "tiny", cwd=learned)
    assert checked.returncode == 0, checked.stdout


def test_killed_while_baselines_are_measured_it_ends_byte_equal(learned: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(learned, broken, symlinks=True)
    for stage in ("sweep", "final"):
        for folder in broken.glob(f"rounds/tiny/round_*/{stage}"):
            shutil.rmtree(folder)
    best = state(learned)["best"].removeprefix("round_").lstrip("0")
    for moment in (
        "0/sweep/shard",
        "0/final/shard",
        "0/final/second",
        f"{best}/sweep/manifest",
        f"{best}/final/work",
    ):
        killed = ssd_loop(moment, "--config", "tiny.yaml", cwd=broken, program=[KILL_AT])
        assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
    assert ssd_loop("--config", "tiny.yaml", cwd=broken).returncode == 0
    assert tree(broken) == tree(learned)


def test_a_fork_that_decodes_alike_does_not_measure_the_base_again(learned: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(learned, here, symlinks=True)
    fork = ("--resume-from", "tiny@1", "--rounds", "2", "--train.epochs", "7")
    for name, changed, attempts in (("alike", (), 0), ("seeded", ("--sample.seed", "5"), 1)):
        done = ssd_loop(*fork, *changed, "--run", name, cwd=here)
        assert done.returncode == 0, done.stderr
        shown = json.loads(ssd_loop("status", name, "--json", cwd=here).stdout)
        base, best = shown["rounds"][0]["stages"], shown["rounds"][int(shown["best"][-3:])]["stages"]
        assert [base[stage]["attempts"] for stage in ("sweep", "final")] == [attempts] * 2
        assert [best[stage]["attempts"] for stage in ("sweep", "final")] == [1, 1]
    hashes = tree(here)
    for stage in ("sweep", "final"):
        of = [
            hashes[f"rounds/{name}/round_000/{stage}/manifest.json"] for name in ("tiny", "alike", "seeded")
        ]
        assert of[0] == of[1] != of[2]


def test_another_grid_is_refused_before_anything_is_done_and_none_is_allowed(learned: Path) -> None:
    before = tree(learned)
    refused = ssd_loop("--config", "tiny.yaml", "--baselines.samples_per_problem", "2", cwd=learned)
    assert refused.returncode == 2
    assert "baselines.samples_per_problem: 1 -> 2" in refused.stderr.splitlines()[-1]
    assert ssd_loop("--config", "tiny.yaml", "--baselines.temperatures", "[]", cwd=learned).returncode == 0
    assert tree(learned) == before


def test_a_report_panel_that_shares_text_with_the_held_out_one_is_refused(
    learned: Path, tmp_path: Path
) -> None:
    text = "Count how many of the given words begin with the same letter as the very last one does"
    for name in ("heldout", "report"):
        rows = [{"prompt": f"{text}, list {n} of {name}.", "answer": "7"} for n in range(1)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("train.jsonl", "tiny.yaml"):
        shutil.copyfile(learned / name, tmp_path / name)
    refused = ssd_loop("--config", "tiny.yaml", cwd=tmp_path)
    assert refused.returncode == 2
    assert "share text with the panel report" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "rounds").exists()


def test_a_damaged_evaluation_hides_nothing_else_in_status(learned: Path, tmp_path: Path) -> None:
    shutil.copytree(learned, tmp_path / "run", symlinks=True)
    (tmp_path / "run/rounds/tiny/round_000/evaluate/results.parquet").write_bytes(b"torn")
    found = state(tmp_path / "run")
    assert "results.parquet" in found["damaged"]
    assert (found["gains"], len(found["rounds"])) == (None, 3)


def test_a_sweep_of_one_model(learned: Path) -> None:
    model = learned / "checkpoints/tiny/best/merged"
    file = learned / "heldout.jsonl"
    given = [f"--evaluate.sources={json.dumps({'heldout': {'source': str(file), **DIGIT}})}"]
    given += [
        "--evaluate.panels",
        '["heldout"]',
        "--evaluate.max_new_tokens",
        "8",
        "--engine.name",
        "transformers",
    ]
    given += ["--baselines.temperatures", "[0.5]", "--baselines.top_p", "[1.0]", "--baselines.top_k", "[0]"]
    shown = ssd_loop("evaluate", model, "--sweep", *given, cwd=learned)
    assert shown.returncode == 0, shown.stderr
    assert "heldout pass@1 by decoding settings" in shown.stdout
    found = json.loads(ssd_loop("evaluate", model, "--sweep", "--json", *given, cwd=learned).stdout)
    assert len(found["points"]) == 3  # as measured, as sampled, and the one that was asked for
    assert all(row["pass_at_1"]["mean"] > 0.2 for row in found["points"])


def test_prompts_without_tests_cannot_be_rejected(learned: Path, tmp_path: Path) -> None:
    shutil.copytree(learned, tmp_path / "run", ignore=shutil.ignore_patterns("rounds", "checkpoints"))
    refused = ssd_loop(
        "--config", "tiny.yaml", "--run", "other", "--prompts.checker", "none", cwd=tmp_path / "run"
    )
    assert refused.returncode == 2
    assert "fails_tests" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "run/rounds").exists()
