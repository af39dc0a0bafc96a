"""Real rounds on tiny models: both families, both engines, from command line to decision."""

import importlib.util
import json

import pytest

from ssd_loop import store
from ssd_loop.records import Dropped, Result, Sample, read_rows
from tests.runs import ssd_loop, tiny_config, tree

pytestmark = pytest.mark.slow

ENGINES = ["transformers", *(["vllm"] if importlib.util.find_spec("vllm") else [])]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def run(request, tmp_path_factory, engine):
    """A finished run of two rounds on one tiny model and one engine."""
    folder = tmp_path_factory.mktemp(f"{engine}-{request.param}")
    model = request.getfixturevalue(f"tiny_{request.param}")
    tiny_config(folder, model, engine)
    done = ssd_loop("--config", "tiny.yaml", "--rounds", 2, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_file_of_the_contract_is_there(run):
    names = set(tree(run))
    for path in (
        "rounds/tiny/round_000/evaluate/report.json",
        "rounds/tiny/round_001/sample/samples.parquet",
        "rounds/tiny/round_001/filter/kept.parquet",
        "rounds/tiny/round_001/filter/dropped.parquet",
        "rounds/tiny/round_001/evaluate/results.parquet",
        "rounds/tiny/round_001/monitor/decision.json",
        "checkpoints/tiny/round_000/composition.json",
        "checkpoints/tiny/round_002/adapter/adapter_model.safetensors",
        "checkpoints/tiny/round_002/merged/model.safetensors",
        "checkpoints/tiny/round_002/composition.json",
        "checkpoints/tiny/best",
    ):
        assert path in names, path
    assert not [name for name in names if ".partial" in name or "shards" in name]


def test_manifests_chain_and_match_their_files(run):
    for path in (*run.rglob("manifest.json"),):
        stage = store.finished(path.parent)
        store.checked(stage)
    evaluate = store.finished(run / "rounds/tiny/round_002/evaluate")
    merge = store.finished(run / "checkpoints/tiny/round_002/merged")
    assert evaluate.manifest.inputs["model"] == merge.as_input


def test_samples_hold_what_was_drawn(run):
    rows = read_rows(run / "rounds/tiny/round_002/sample/samples.parquet", Sample)
    assert len(rows) == 16
    assert {row.policy_round for row in rows} == {1}
    assert len({row.seed for row in rows}) == 16
    for row in rows:
        assert len(row.token_ids) <= 24
        assert (row.finish_reason == "length") == (len(row.token_ids) == 24) or row.finish_reason == "stop"
        assert row.logprob < 0
    kept = read_rows(run / "rounds/tiny/round_002/filter/kept.parquet", Sample)
    dropped = read_rows(run / "rounds/tiny/round_002/filter/dropped.parquet", Dropped)
    assert len(kept) + len(dropped) == 16
    assert set(kept) <= set(rows)


def test_round_0_has_four_times_the_samples(run):
    first = read_rows(run / "rounds/tiny/round_000/evaluate/results.parquet", Result)
    later = read_rows(run / "rounds/tiny/round_001/evaluate/results.parquet", Result)
    assert len(first) == 4 * len(later)


def test_no_file_names_this_machine_or_the_run(run):
    import platform

    for name in tree(run):
        path = run / name
        if path.is_symlink():
            continue
        content = path.read_bytes()
        assert str(run).encode() not in content, name
        assert platform.node().encode() not in content or len(platform.node()) < 6, name


def test_second_start_finds_everything_done(run):
    before = tree(run)
    again = ssd_loop("--config", "tiny.yaml", "--rounds", 2, cwd=run)
    assert again.returncode == 0, again.stderr
    assert tree(run) == before
    assert "finished" in again.stderr


def test_status_prints_a_table_and_json(run):
    shown = ssd_loop("status", "tiny", cwd=run)
    assert shown.returncode == 0
    assert "pass@1" in shown.stdout
    state = json.loads(ssd_loop("status", "tiny", "--json", cwd=run).stdout)
    assert [row["round"] for row in state["rounds"]] == [0, 1, 2]
    assert all(s["state"] == "finished" for row in state["rounds"] for s in row["stages"].values())


def test_merged_model_loads_in_plain_transformers(run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = run / "checkpoints/tiny/round_002/merged"
    AutoModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).get_chat_template()


def test_evaluate_measures_a_model_folder(run):
    done = ssd_loop(
        "evaluate",
        run / "checkpoints/tiny/round_001/merged",
        "--json",
        "--engine.name",
        "transformers",
        "--engine.max_model_len",
        1024,
        "--evaluate.limit",
        8,
        "--evaluate.max_new_tokens",
        8,
        cwd=run,
    )
    assert done.returncode == 0, done.stderr
    assert "heldout" in json.loads(done.stdout)["panels"]


def test_a_wrecked_model_is_stopped_and_stays_stopped(tmp_path, tiny_llama):
    wild = {"train": {"learning_rate": 0.3}, "monitor": {"action": "stop"}, "rounds": 3}
    tiny_config(tmp_path, tiny_llama, "transformers", **wild)
    stopped = ssd_loop("--config", "tiny.yaml", cwd=tmp_path)
    assert stopped.returncode == 3, stopped.stderr
    assert "stopped by the monitors" in stopped.stderr.strip().splitlines()[-1]
    assert (tmp_path / "checkpoints/tiny/best").readlink().name == "round_000"
    before = tree(tmp_path)
    assert ssd_loop("--config", "tiny.yaml", cwd=tmp_path).returncode == 3
    assert tree(tmp_path) == before
    watched = ssd_loop("--config", "tiny.yaml", "--monitor.action", "warn", "--rounds", 2, cwd=tmp_path)
    assert watched.returncode == 0, watched.stderr
    after = tree(tmp_path)
    assert {name: after[name] for name in before} == before


def test_an_empty_training_set_is_one_sentence(tmp_path, tiny_llama):
    tiny_config(tmp_path, tiny_llama, "transformers", filter={"filters": ["unparsable"]})
    failed = ssd_loop("--config", "tiny.yaml", cwd=tmp_path)
    assert failed.returncode == 1
    assert "unparsable" in failed.stderr.strip().splitlines()[-1]
    assert "Traceback" not in failed.stderr
