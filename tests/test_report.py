"""The report of a run: what it says, what it says of damage, and what it may cost."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import io
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ssd_loop import costs, durable, evaluation, filtering, finals, sampling, store, sweeping
from ssd_loop.config import EvaluateConfig, FilterConfig, MonitorConfig, RunConfig
from ssd_loop.config_file import load
from ssd_loop.errors import ConfigError
from ssd_loop.figures import REPORT
from ssd_loop.gains import counts
from ssd_loop.monitors.decision import DECISION, Decision, Reading, summary
from ssd_loop.monitors.replay import Limits
from ssd_loop.monitors.rule import Setup, decide
from ssd_loop.monitors.suite import SCORED, sampled
from ssd_loop.place import Place
from ssd_loop.problems import Problem
from ssd_loop.records import Result, Sample, TextScore, Trait, read_rows, write_rows
from ssd_loop.report import account, browser, compare, grids, page, recipe, status
from ssd_loop.report.trends import DIRECTIONS, trends
from ssd_loop.store import Metrics
from tests.evidence import HEALTHY, LAW, evidence, jittered, panel, scored, worse
from tests.rows import fenced, function, sample
from tests.tiny import build_tokenizer

TOKENIZER = build_tokenizer()
LIMIT = Limits(3.2, 1.9)  # as a replay gives
NAMES = (
    "total",
    "items",
    "value",
    "result",
    "left",
    "right",
    "count",
    "text",
    "index",
    "limit",
    "carry",
    "best",
)
STEPS = ("+", "-", "*", "//", "%", "^", "&", "|")


def program(name: str, rng: np.random.Generator) -> str:
    """An answer of a few hundred letters that no other one equals."""
    lines = [f"def {name}(x):", f"    {rng.choice(NAMES)} = x"]
    for _ in range(int(rng.integers(4, 12))):
        a, b, c = rng.choice(NAMES, 3)
        lines.append(f"    {a} = ({b} {rng.choice(STEPS)} {rng.integers(1, 99)}) {rng.choice(STEPS)} {c}")
    lines.append(f"    return {rng.choice(NAMES)}")
    return fenced("\n".join(lines))


def finish(folder: Path, name: str, n: int, work: Callable[[Path], Metrics]) -> None:
    store.step(folder, stage=name, round_index=n, version=1, settings={}, inputs={}, work=work)


class Bench:
    """Builds the folders of a run from random rows with the project's own writers, without a model."""

    def __init__(self, root: Path, run: str = "mine", *, seed: int = 0, **sizes: int) -> None:
        self.place = Place(root, run)
        self.rng = np.random.default_rng(seed)
        sizes = {"prompts": 12, "heldout": 20, "ood": 12, **sizes}
        self.prompts = [function(f"make_{i}", "train") for i in range(sizes["prompts"])]
        self.panels = {
            name: [
                function(f"{name}_{i}", name, tier="easy" if i % 2 else "hard") for i in range(sizes[name])
            ]
            for name in ("heldout", "ood")
        }
        self.decisions: list[Decision] = []

    def describe(self, config: Mapping[str, Any] | None = None, **other: Any) -> None:
        """run.json."""
        config = RunConfig.model_validate(config or {}).model_dump(mode="json", exclude={"rounds"})
        about = {
            "base_model": {"title": "Tiny", "dtype": "bfloat16", "content_hash": "ba5e"},
            "engine": "vllm",
            "config": config,
            "data": {"prompts": "p", "heldout": "h", "ood": "o"},
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
            "hardware": {"cpu": "a processor", "cores": 2, "memory_gib": 8.0, "gpus": []},
            "git_commit": "c0ffee",
        }
        durable.write_sealed(self.place.folder / "run.json", {**about, **other})

    def stage(self, n: int, name: str, work: Callable[[Path], Metrics]) -> None:
        with costs.timed(self.place.folder, n, name):
            finish(self.place.stage(n, name), name, n, work)

    def rows(self, problems: Sequence[Problem], n: int, each: int) -> list[Sample]:
        prompts = {p.id: tuple(TOKENIZER(f"Write {p.id}.\n")["input_ids"]) for p in problems}
        return [
            sample(
                program(p.id, self.rng),
                panel=p.panel,
                prompt_id=p.id,
                sample_index=index,
                policy_round=n,
                prompt_token_ids=prompts[p.id],
                finish_reason="length" if self.rng.random() < 0.05 else "stop",
            )
            for p in problems
            for index in range(each)
        ]

    def evaluated(self, n: int, right: float, sizes: Mapping[str, int]) -> None:
        """An evaluation in which each answer is right with a chance of its own, `right` on average."""

        def work(out: Path) -> Metrics:
            samples, results, reports = [], [], {}
            for name, problems in self.panels.items():
                own = self.rows(problems, n, sizes[name])
                chance = dict(
                    zip([p.id for p in problems], np.linspace(0.0, 2.0 * right, len(problems)), strict=True)
                )
                judged = [
                    Result(
                        name,
                        s.prompt_id,
                        s.sample_index,
                        "passed"
                        if self.rng.random() < chance[s.prompt_id]
                        else str(self.rng.choice(["failed", "crashed", "timeout", "no_code"])),  # type: ignore[arg-type]
                        None,
                    )
                    for s in own
                ]
                traits = [
                    Trait(
                        name,
                        s.prompt_id,
                        s.sample_index,
                        f"{i % 7}",
                        3,
                        s.finish_reason == "length",
                        False,
                        -3.0,
                    )
                    for i, s in enumerate(own)
                ]
                config = EvaluateConfig()
                reports[name] = evaluation.panel_report(problems, own, judged, traits, config)
                samples += own
                results += judged
            scores = scored(LAW if n == 0 else jittered(LAW, self.rng, 0.02 * n))
            write_rows(out / sampling.SAMPLES, Sample, samples)
            write_rows(out / evaluation.RESULTS, Result, results)
            write_rows(out / evaluation.SCORES, TextScore, scores)
            report = {"panels": reports, "reference": evaluation.reference_report(scores)}
            durable.write_json(out / REPORT, durable.finite(report))
            return {"tokens": 10}

        self.stage(n, "evaluate", work)

    def trained(self, n: int) -> None:
        """Samples, what of them was kept, and a model of which only the tokenizer is real."""
        rows = self.rows(self.prompts, n, 1)
        rows[0] = dataclasses.replace(rows[0], text="pass")

        def sampled_rows(out: Path) -> Metrics:
            write_rows(out / sampling.SAMPLES, Sample, rows)
            return {"tokens": 3 * len(rows)}

        def merged(out: Path) -> Metrics:
            TOKENIZER.backend_tokenizer.save(str(out / "tokenizer.json"))
            return {}

        self.stage(n, "sample", sampled_rows)
        self.stage(n, "filter", lambda out: filtering.run(FilterConfig(), rows, out=out))
        self.stage(n, "train", lambda out: {"tokens_trained": 9})
        self.stage(n, "merge", merged)

    def decided(self, n: int, decision: Decision) -> None:
        def work(out: Path) -> Metrics:
            durable.write_json(out / DECISION, decision.to_json())
            return summary(decision)

        self.stage(n, "monitor", work)
        self.decisions.append(decision)
        self.point(decision.best_round)

    def point(self, best: int) -> None:
        """Make `best` say so."""
        self.place.weights.mkdir(parents=True, exist_ok=True)
        durable.point_link(self.place.weights / "best", f"round_{best:03d}")

    def swept(self, n: int, right: float) -> None:
        """A sweep in which warmth costs, and the settings of every round and of sampling come first."""

        def work(out: Path) -> Metrics:
            asked = [(0.8, 0, 1.0), (1.0, 20, 0.8), *((t, k, 1.0) for t in (0.2, 0.6, 1.0) for k in (0, 20))]
            rows = [
                {
                    "temperature": t,
                    "top_k": k,
                    "top_p": p,
                    "max_new_tokens": 128,
                    "pass_at_1": {"mean": max(0.0, right - 0.05 * t), "se": 0.02},
                    "tokens": 1000,
                }
                for t, k, p in asked
            ]
            durable.write_json(
                out / sweeping.SWEEP, {"panel": "heldout", "samples_per_problem": 1, "points": rows}
            )
            return {}

        self.stage(n, "sweep", work)

    def finally_measured(self, n: int, right: float, arms: Sequence[str]) -> None:
        """The untouched panel: 40 problems, 4 answers each, in every arm."""

        def work(out: Path) -> Metrics:
            found = {}
            for arm in arms:
                rows = [
                    Result("report", f"r{i}", j, "passed" if self.rng.random() < right else "failed", None)
                    for i in range(40)
                    for j in range(4)
                ]
                passed = {name: list(pair) for name, pair in counts(rows).items()}
                rates = [pair[0] / pair[1] for pair in passed.values()]
                rate = evaluation.estimate(rates)
                found[arm] = {
                    "temperature": 0.2,
                    "top_k": 0,
                    "top_p": 1.0,
                    "max_new_tokens": 128,
                    "pass_at_1": {"mean": rate.mean, "se": rate.se},
                    "passed": passed,
                    "tokens": 5000,
                }
            durable.write_json(
                out / finals.FINAL, {"panel": "report", "problems": 40, "samples": 4, "arms": found}
            )
            return {}

        self.stage(n, "final", work)


STEADY: list[dict[str, Any]] = [{"panels": {"heldout": {"passed": {}}}}] * 2
SETUP = Setup(MonitorConfig(), coverage_k=4, richness_m=2, seed=0)
LIMITS = {m.name: LIMIT for m in SETUP.monitors} | dict.fromkeys(SCORED, LIMIT)


def decision(n: int, *, loss: float = 0.0, best: int = 0, earlier: Sequence[Decision] = ()) -> Decision:
    """What the project's rule decides where held-out pass@1 fell by `loss`, and all else stayed."""
    rng = np.random.default_rng(n)
    seen = evidence(rng, round_index=n, panels={"heldout": panel(worse(loss), rng)})
    found = decide(seen, SETUP, history=STEADY[:1] * (n + 1), earlier=list(earlier), limit=LIMITS)
    return Decision(**{**vars(found), "best_round": best})


def build(root: Path, run: str = "mine", *, rounds: int = 3, seed: int = 0, **config: Any) -> Bench:
    """A run of some rounds whose best is the last but one; in the last one pass@1 fell, and it stopped."""
    bench = Bench(root, run, seed=seed)
    bench.describe(config)
    bench.evaluated(0, 0.2, {"heldout": 8, "ood": 4})
    for n in range(1, rounds + 1):
        bench.trained(n)
        bench.evaluated(n, 0.2 + 0.1 * n, {"heldout": 2, "ood": 1})
        best = min(n, rounds - 1)
        bench.decided(n, decision(n, loss=0.2 * (n == rounds), best=best, earlier=bench.decisions))
    for n, right in ((0, 0.2), (rounds - 1, 0.6)):
        bench.swept(n, right)
        more = () if n else finals.SECOND
        bench.finally_measured(n, right, ["as measured", "as sampled", "best decoding", *more])
    return bench


@pytest.fixture(scope="module")
def run_of_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests that damage it copy it first."""
    root = tmp_path_factory.mktemp("run")
    build(root)
    return root


@pytest.fixture(scope="module")
def page_of_three(run_of_three: Path) -> str:
    """Its report."""
    return written(run_of_three)


def tree_of(root: Path, into: Path) -> Path:
    """A copy of a run that a test may damage."""
    return Path(shutil.copytree(root, into / "copy", symlinks=True))


def written(root: Path, run: str = "mine") -> str:
    return page.write(account.gather(root, run)).read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every element's name and attributes, and the text of the page without scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


def unpacked(packed: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(gzip.decompress(base64.b64decode(packed)))
    return entries


# What it says.


def test_status_says_where_nothing_was_held_against_decoding_alone(
    run_of_three: Path, tmp_path: Path
) -> None:
    def shown(root: Path) -> str:
        text = io.StringIO()
        status.show(status.read(root, "mine"), Console(file=text, width=200))
        return text.getvalue()

    assert "decoding alone" not in shown(run_of_three)
    root = tree_of(run_of_three, tmp_path)
    for folder in root.glob("rounds/mine/round_*/final"):
        shutil.rmtree(folder)
    assert "is measured when the run ends" in shown(root)
    Bench(root).describe({"baselines": {"temperatures": []}})
    assert "the same command with --baselines.temperatures '[0.2, 0.6, 1.0]' measures it" in shown(root)


def test_the_verdict_is_the_final_figure_of_the_run(run_of_three: Path) -> None:
    found = account.gather(run_of_three, "mine")
    final = [
        json.loads((run_of_three / f"rounds/mine/round_00{n}/final/final.json").read_text()) for n in (0, 2)
    ]
    rates = [
        np.array([right / drawn for right, drawn in arms["arms"]["best decoding"]["passed"].values()])
        for arms in final
    ]
    gain = 100 * float((rates[1] - rates[0]).mean())
    sentence = account.verdict(found)
    assert f"{gain:+.1f} [" in sentence
    assert f"round 2 of Tiny solves {100 * rates[1].mean():.1f} %" in sentence
    assert sentence.endswith(
        "the monitors stopped it after round 3 (harm: regression: pass rates fell and no other monitor says "
        "why)."
    )
    lines = page.summary(account.gather(run_of_three, "mine"))
    assert lines[0] == sentence
    assert any("covers sampling noise only" in line for line in lines)
    assert not any(line.startswith("missing") for line in lines)


def test_every_section_is_there_in_order(run_of_three: Path, page_of_three: str) -> None:
    elements = Elements(page_of_three)
    heads = [attributes.get("id") for tag, attributes in elements.found if tag == "h2"]
    assert heads == ["trends", "gains", "baselines", "cost", "places", "samples", "settings"]
    assert account.verdict(account.gather(run_of_three, "mine")) in elements.text
    for said in (
        "stop (harm)",
        "base, revised",
        "heldout: no code",
        "T 1, top-k 20, top-p 0.8",
        "a processor",
        "c0ffee",
    ):
        assert said in elements.text


@pytest.mark.parametrize(
    ("decided", "said"),
    [
        ([], "no round was decided on"),
        (
            [("continue", "none", "no monitor is past its threshold")],
            "no monitor had stopped it by round 1, its last",
        ),
        (
            [("stop", "futility", "two rounds gained nothing")],
            "the monitors stopped it after round 1 (futility: two rounds gained nothing)",
        ),
    ],
)
def test_how_a_run_ended(tmp_path: Path, decided: list[tuple[Any, Any, str]], said: str) -> None:
    bench = Bench(tmp_path)
    bench.describe()
    for verdict, kind, reason in decided:
        bench.decided(1, Decision(1, verdict, kind, reason, "none", 0, 1, {}))
    assert account.ending(account.gather(tmp_path, "mine")) == said


def test_a_stop_that_was_passed_over_or_only_watched_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.describe({"monitor": {"action": "warn"}})
    bench.decided(1, Decision(1, "stop", "harm", "regression: it fell (numbers)", "regression", 0, 1, {}))
    assert "only watched, said stop at round 1 (harm: regression: it fell)" in account.ending(
        account.gather(tmp_path, "mine")
    )
    durable.write_sealed(bench.place.folder / "continued.json", {"past_stops": [1]})
    assert "passed over on request" in account.ending(account.gather(tmp_path, "mine"))


def test_costs_are_told_and_a_failed_attempt_shows(run_of_three: Path, tmp_path: Path) -> None:
    root = tree_of(run_of_three, tmp_path)
    log = root / "rounds/mine/costs.jsonl"
    with pytest.raises(KeyboardInterrupt), costs.timed(log.parent, 4, "sample"):
        raise KeyboardInterrupt
    with log.open("a") as file:
        file.write('{"round": 1, "sta')  # torn: it costs this line alone
    text = Elements(written(root)).text
    assert "Attempts that failed: 1; killed or still at work: 0" in text
    assert "times one inference pass and one fine-tune" in text
    table = grids.cost_by_stage(account.gather(root, "mine").ledger)
    # 4 evaluations, 5 stages in each of 3 rounds, 2 sweeps, 2 finals, and the one that failed.
    assert table.rows[-1][-4:-1] == ["24", "1", "0"]
    assert sum(int(row[-4]) for row in table.rows[:-1]) == 24


def test_a_price_that_was_learned_later_is_taken(two_runs: Path, tmp_path: Path) -> None:
    root = tree_of(two_runs, tmp_path)
    unknown = account.gather(root, "cool").ledger
    assert unknown["total"]["money"] is None
    priced = account.gather(root, "cool", price_per_device_hour=2.5).ledger
    assert priced["total"]["money"] == pytest.approx(2.5 * unknown["total"]["device_hours"])
    page = compare.write_comparison(root, "cool", "hot", price_per_device_hour=2.5).read_text()
    assert "money a point" in Elements(page).text
    assert "money" not in Elements(compare.write_comparison(root, "cool", "hot").read_text()).text


# Trends.


def test_bands_by_hand() -> None:
    """2.0 may fall by 15 % and by three standard errors of 5 % on top: to 1.7, and to 1.4."""
    readings = {
        "richness": Reading("collapse", 1.9, 2.0, 0.15, se=0.05, t=-2.0, threshold=3.0),
        "reference_nll": Reading("harm", 1.5, 1.4, 0.03, se=0.01, t=7.0, threshold=3.0, alarm=True),
        "length": Reading("guard", 20.0, 50.0, 2.0),
        "truncated_share": Reading("guard", 0.1, 0.02, 0.06),
        "self_bleu": Reading("report", 0.4, None, None),
    }
    found = {t.name: t for t in trends([Decision(1, "stop", "harm", "", "forgetting", 0, 1, readings)])}
    bands = {name: (t.points[0].tolerated, t.points[0].alarm_at) for name, t in found.items()}
    assert bands["richness"] == (pytest.approx(1.7), pytest.approx(1.4))
    assert bands["reference_nll"] == (pytest.approx(1.43), pytest.approx(1.46))
    assert bands["length"] == (100.0, 100.0)
    assert found["length"].points[0].alarm_below == 25.0
    assert bands["truncated_share"] == (0.06, 0.06)
    assert bands["self_bleu"] == (None, None)
    assert [t.group for t in found.values()] == ["harm", "collapse", "guard", "guard", "report"]
    assert found["reference_nll"].alarms == [1]


def test_directions_and_forms_are_those_of_the_rule() -> None:
    """t = (worsening - margin) / se, so the rule's own readings give away how each worsening is measured."""
    rng = np.random.default_rng(4)
    panels = {
        "twin": panel(worse(0.1), rng),
        "probe": panel(worse(0.1), rng, archive=HEALTHY.draw(24, rng)),
        "heldout": panel(worse(0.1), rng),
        "ood": panel(worse(0.1), rng),
    }
    seen = evidence(rng, panels=panels, law=jittered(LAW, rng, 0.3))
    found = decide(seen, SETUP, history=STEADY, earlier=[], limit=LIMITS)
    checked = set()
    for name, (direction, form) in DIRECTIONS.items():
        reading = found.monitors[name]
        if reading.t is None or not reading.se:
            continue
        assert reading.value is not None
        assert reading.baseline is not None
        assert reading.margin is not None
        scale = reading.baseline if form == "relative" else 1.0
        worsening = direction * (reading.value - reading.baseline) / scale
        assert reading.t * reading.se + reading.margin == pytest.approx(worsening, abs=1e-9), name
        checked.add(name)
    assert set(SCORED) | {monitor.name for monitor in sampled(2, 2)} == set(DIRECTIONS)
    assert checked >= set(DIRECTIONS) - {"dead_share"}  # which never varies in this law


def test_a_round_without_a_value_is_a_gap_with_its_reason(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.describe()
    for n in range(1, 6):
        told = n != 3
        value, reason = (0.5, None) if told else (None, "3 problems tell it")
        reading = Reading("harm", value, value, 0.02, reason=reason)
        readings = {"ood_pass_at_1": reading, **({} if n == 4 else {"dead_share": reading})}
        bench.decided(n, Decision(n, "continue", "none", "fine", "none", 0, 1, readings))
    text = written(tmp_path)
    assert "round 3: 3 problems tell it" in Elements(text).text
    picture = text[text.index("<svg") : text.index("</svg>")]
    lines = re.findall(r'<path d="([^"]+)" clip-path="[^"]+" style="[^"]*stroke: var\(--line-1\)', picture)
    assert [line.count("M") for line in lines] == [2]  # the line is taken up again after the gap
    assert "round 3: none" in picture
    assert "round 4: no reading is there" in Elements(text).text


# One file.


def test_the_page_asks_for_nothing_and_its_parts_fit(page_of_three: str) -> None:
    text = page_of_three
    elements = Elements(text)
    names = [value for _, attributes in elements.found for key, value in attributes.items() if key == "id"]
    assert len(names) == len(set(names))
    for tag, attributes in elements.found:
        assert tag not in ("link", "img", "iframe", "object", "image")
        assert "src" not in attributes
        for key in ("href", "xlink:href"):
            target = attributes.get(key)
            assert target is None or (target[0] == "#" and target[1:] in names)
        if (label := attributes.get("aria-labelledby")) is not None:
            assert label in names
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
            assert "viewbox" in attributes
            assert "width" not in attributes
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(names)
    assert "url(http" not in text
    assert "default-src 'none'" in text
    script = text[text.rindex("<script>") + len("<script>") : text.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_pictures_have_the_page_s_colours_and_letters(page_of_three: str) -> None:
    text = page_of_three
    style = text[text.index("<style>") : text.index("</style>")]
    known = set(re.findall(r"(--[a-z0-9-]+):", style))
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", text)) <= known
    assert "prefers-color-scheme: dark" in style
    for picture in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert "font-family" not in picture
        assert not re.search(r"(fill|stroke): #(?!fff)", picture)


def test_the_same_run_gives_the_same_bytes(run_of_three: Path, page_of_three: str, tmp_path: Path) -> None:
    assert written(tree_of(run_of_three, tmp_path)) == page_of_three


def test_what_a_run_says_is_escaped(tmp_path: Path) -> None:
    bench = Bench(tmp_path, prompts=1, heldout=12, ood=1)
    wicked = "</script><img src=x onerror=alert(1)>$x$\x0b"
    bench.panels["heldout"] = [
        dataclasses.replace(p, id=f"{p.id}{wicked}", tier=f"{p.tier}{wicked}")
        for p in bench.panels["heldout"]
    ]
    bench.describe()
    bench.evaluated(0, 0.0, {"heldout": 4, "ood": 1})
    bench.evaluated(1, 0.9, {"heldout": 4, "ood": 1})
    bench.decided(1, Decision(1, "stop", "guard", wicked, "leak", 1, 1, {}))
    text = written(tmp_path)
    assert "<img" not in text
    assert [tag for tag, _ in Elements(text).found].count("script") == 2
    assert "heldout_11&lt;/script&gt;" in text


# Samples.


def test_the_browser_holds_every_sample_and_what_became_of_it(run_of_three: Path) -> None:
    shown = browser.gather(account.open_shelf(run_of_three, "mine"))
    assert shown is not None
    entries = unpacked(shown.packed)
    assert shown.samples == shown.drawn == sum(len(entry["samples"]) for entry in entries)
    assert shown.sentence == f"All {shown.samples} samples of {12 + 20 + 12} prompts."
    first = entries[0]
    assert (first["panel"], first["id"], first["prompt"]) == ("train", "make_0", "Write make_0.\n")
    assert [sample[:3] for sample in first["samples"]] == [[n, 0, "dropped: stub"] for n in (1, 2, 3)]
    assert [sample[2] for sample in entries[1]["samples"]] == ["kept"] * 3
    answers = next(entry for entry in entries if entry["panel"] == "heldout")
    judged = {
        (n, row.sample_index): row.outcome.replace("_", " ")
        for n in range(4)
        for row in read_rows(run_of_three / f"rounds/mine/round_00{n}/evaluate/results.parquet", Result)
        if (row.panel, row.problem_id) == ("heldout", answers["id"])
    }
    assert {(n, index): state for n, index, state, _, _ in answers["samples"]} == judged


def test_too_many_samples_are_thinned_evenly_and_that_is_said(run_of_three: Path) -> None:
    shelf = account.open_shelf(run_of_three, "mine")
    shown = browser.gather(shelf, most_samples=200)
    assert shown is not None
    assert shown.samples <= 200
    assert f"{shown.samples} of {shown.drawn} samples" in shown.sentence
    assert f"{shown.prompts} of 44 prompts, evenly chosen" in shown.sentence
    ids = [entry["id"] for entry in unpacked(shown.packed) if entry["panel"] == "heldout"]
    places = [int(name.removeprefix("heldout_")) for name in ids]
    assert len(ids) > 3
    assert max(np.diff(places)) - min(np.diff(places)) <= 1
    small = browser.gather(shelf, most_bytes=10_000)
    assert small is not None
    assert len(small.packed) <= 10_000
    assert 3 <= small.prompts < 44


# Damage.


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def gone(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("damage", [torn, gone])
@pytest.mark.parametrize(
    "name",
    [
        "run.json",
        "round_000/evaluate/manifest.json",
        "round_000/evaluate/report.json",
        "round_000/evaluate/scores.parquet",
        "round_000/final/final.json",
        "round_002/evaluate/results.parquet",
        "round_002/evaluate/samples.parquet",
        "round_002/evaluate/report.json",
        "round_002/sweep/sweep.json",
        "round_003/monitor/decision.json",
        "round_001/sample/samples.parquet",
        "round_001/filter/dropped.parquet",
    ],
)
def test_a_damaged_file_is_one_line(
    run_of_three: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    root = tree_of(run_of_three, tmp_path)
    damage(root / "rounds/mine" / name)
    found = account.gather(root, "mine")
    browser.gather(found.shelf)
    assert [line.partition(": ")[0] for line in found.shelf.missing] == [f"rounds/mine/{name}"]


def test_a_report_of_a_badly_damaged_run(run_of_three: Path, tmp_path: Path) -> None:
    root = tree_of(run_of_three, tmp_path)
    for name in ("run.json", "round_000/evaluate/report.json", "round_003/monitor/decision.json"):
        torn(root / "rounds/mine" / name)
    for name in ("round_000/final", "round_002/sweep", "round_001/sample", "costs.jsonl"):
        gone(root / "rounds/mine" / name)
    text = Elements(written(root)).text
    assert "What is missing" in text
    for line in account.gather(root, "mine").shelf.missing:
        assert line in text
    for said in ("run.json cannot be read", "there is no gain to show", "No costs were logged"):
        assert said in text


@pytest.mark.parametrize("name", ["round_000", "round_002", "round_003/monitor", "round_002/evaluate"])
def test_a_folder_that_is_gone_is_told(run_of_three: Path, tmp_path: Path, name: str) -> None:
    root = tree_of(run_of_three, tmp_path)
    gone(root / "rounds/mine" / name)
    number = int(name[6:9])
    text = "\n".join(account.gather(root, "mine").shelf.missing)
    assert re.search(rf"rounds/mine: round {number} has no .*(evaluate|monitor)", text)


def test_without_weights_costs_or_best_there_is_still_a_report(run_of_three: Path, tmp_path: Path) -> None:
    root = tree_of(run_of_three, tmp_path)
    gone(root / "checkpoints")
    gone(root / "rounds/mine/costs.jsonl")
    text = Elements(written(root)).text
    assert "rounds/mine: round 1 to 3 has no train, merge" in text
    assert "checkpoints/mine/best: is missing" in text
    assert "rounds/mine/costs.jsonl: is missing" in text
    assert "no merged model with a tokenizer" in text
    assert "round 2 of Tiny solves" in text  # the last decision names the best round


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.describe()
    (bench.place.folder / "round_000/evaluate.partial").mkdir(parents=True)
    text = Elements(written(tmp_path)).text
    assert "rounds/mine/round_000/evaluate: is unfinished" in text
    assert "Nothing was decided about Tiny yet; no round was decided on." in text


def test_a_discarded_round_and_a_fork_miss_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.describe(start=1, parent={"run": "other", "round": 1}, changes=[])
    bench.evaluated(0, 0.2, {"heldout": 4, "ood": 1})
    bench.stage(1, "train", lambda out: {})
    bench.evaluated(1, 0.3, {"heldout": 1, "ood": 1})
    for stage in ("sample", "filter"):
        bench.stage(2, stage, lambda out: {})
    bench.stage(2, "train", lambda out: {"cliff_step": 8})
    bench.decided(2, Decision(2, "stop", "guard", "cliff: it broke; fork", "cliff", 0, 1, {}))
    assert not any("has no" in line for line in account.gather(tmp_path, "mine").shelf.missing)
    assert "started from other@1" in Elements(written(tmp_path)).text


def test_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run 'mine'"):
        page.write(account.gather(tmp_path, "mine"))


# Settings.


def test_the_paper_s_own_recipe_departs_where_it_says_so() -> None:
    config = load(Path(__file__).parent.parent / "configs/qwen3-4b-instruct.yaml", {})
    differs = {row.setting for row in recipe.departures(config, 5) if not row.is_same}
    assert differs == {"rounds", "sample.max_new_tokens", "trained weights", "train.learning_rate"}
    thinking = load(Path(__file__).parent.parent / "configs/qwen3-4b-thinking.yaml", {})
    rows = {row.setting: row for row in recipe.departures(thinking, 1)}
    assert (rows["sample.temperature"].paper, rows["train.epochs"].is_same) == ("1.1", True)
    other = {row.setting: row for row in recipe.departures(RunConfig(), 1)}
    assert other["sample.temperature"].source.endswith("Qwen3-4B-Instruct-2507")
    assert not other["sample.temperature"].is_same


# Two runs.


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    build(root, "cool", rounds=2)
    build(root, "hot", rounds=3, seed=1, sample={"temperature": 1.6})
    return root


def test_two_runs_side_by_side(two_runs: Path) -> None:
    path = compare.write_comparison(two_runs, "cool", "hot")
    assert path == two_runs / "rounds/cool/compare-hot.html"
    text = path.read_text(encoding="utf-8")
    elements = Elements(text)
    for run in ("cool", "hot"):
        assert account.verdict(account.gather(two_runs, run)) in elements.text
    assert re.search(r"sample\.temperature\s*1\.0\s*1\.6", elements.text)
    assert "evaluate.temperature" not in elements.text
    assert "measured otherwise" not in elements.text
    drawn = text[text.index('id="both-heldout_pass_at_1') - 2000 :]
    label = re.search(r'aria-label="(heldout_pass_at_1 by round; cool: [^"]*hot: [^"]*)"', drawn)
    assert label is not None
    assert len(re.findall(r"\b[123] 0\.\d", label[1])) == 2 + 3


def test_runs_that_were_measured_otherwise_are_marked(two_runs: Path, tmp_path: Path) -> None:
    root = tree_of(two_runs, tmp_path)
    Bench(root, "hot").describe({"evaluate": {"temperature": 0.5}})
    text = Elements(compare.write_comparison(root, "cool", "hot").read_text()).text
    assert "measured otherwise (evaluate.temperature)" in text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"base_model": {"title": "Other", "content_hash": "0"}}, r"base model \(Tiny, Other\)"),
        ({"data": {"prompts": "q", "heldout": "x", "ood": "o"}}, "problems of panel heldout;"),
    ],
)
def test_runs_of_other_models_or_panels_are_refused(
    two_runs: Path, tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    root = tree_of(two_runs, tmp_path)
    (root / "rounds/cool/compare-hot.html").unlink(missing_ok=True)
    Bench(root, "hot").describe(**changed)
    with pytest.raises(ConfigError, match=said):
        compare.write_comparison(root, "cool", "hot")
    assert not list((root / "rounds/cool").glob("compare-*"))


def test_other_prompts_or_another_panel_more_are_no_reason_to_refuse(two_runs: Path, tmp_path: Path) -> None:
    root = tree_of(two_runs, tmp_path)
    Bench(root, "hot").describe(data={"prompts": "q", "heldout": "h", "twin": "t"})
    assert compare.write_comparison(root, "cool", "hot").exists()


def test_a_run_is_not_compared_with_itself(two_runs: Path) -> None:
    with pytest.raises(ConfigError, match="itself"):
        compare.write_comparison(two_runs, "cool", "cool")


# Size.


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_twenty_rounds_and_ten_thousand_samples_fit(tmp_path: Path) -> None:
    """290 prompts x 20, 60 held-out problems x (8 + 2 x 20), 55 others x (4 + 20): 10,000 samples."""
    bench = Bench(tmp_path, prompts=290, heldout=60, ood=55)
    bench.describe()
    bench.evaluated(0, 0.2, {"heldout": 8, "ood": 4})
    said = decision(1, best=1)
    for n in range(1, 21):
        bench.trained(n)
        bench.evaluated(n, 0.4, {"heldout": 2, "ood": 1})
        bench.decided(n, dataclasses.replace(said, round=n))
    for n in (0, 1):
        bench.swept(n, 0.4)
        bench.finally_measured(n, 0.4, ["as measured", "as sampled", "best decoding"])
    began = time.monotonic()
    path = page.write(account.gather(tmp_path, "mine"))
    seconds = time.monotonic() - began
    assert "All 10,000 samples of 405 prompts" in Elements(path.read_text()).text
    assert path.stat().st_size < 5_000_000
    assert seconds < 20.0
