"""The page of a search; tests/test_tune.py looks at one that a real search has made."""

import html
import re

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from fashion.report.table import Comparison, Row, Table
from fashion.search import page as search_page
from fashion.search.study import quieten
from fashion.search.trials import REASON, Trials

EVIL = "</pre><script>alert('&')</script>\"' "
KEY = "<script>1</script>&"  # an axis has a label of it
DISTRIBUTIONS = {
    "optimizer.lr": FloatDistribution(0.0001, 0.01, log=True),
    KEY: CategoricalDistribution([KEY, "relu"]),
}


def trial(number: int, state: TrialState = TrialState.COMPLETE, *, epochs: int = 2) -> FrozenTrial:
    made = create_trial(
        state=state,
        value=0.8 + number / 1000 if state in (TrialState.COMPLETE, TrialState.PRUNED) else None,
        params={"optimizer.lr": 0.001, KEY: KEY if number % 2 else "relu"},
        distributions=DISTRIBUTIONS,
        intermediate_values={step: 0.5 + step / 10 for step in range(1, epochs + 1)},
        user_attrs={REASON: EVIL} if state == TrialState.FAIL else {},
    )
    made.number = number
    return made


@pytest.fixture(scope="module")
def page() -> str:
    """Return a page whose every text that a stranger may have chosen is hostile."""
    quieten()
    least = search_page.LEAST
    trials = [trial(0), *(trial(number, TrialState.PRUNED) for number in range(1, least))]
    trials += [
        trial(least, TrialState.FAIL),
        trial(least + 1, TrialState.RUNNING),
        trial(least + 2, TrialState.RUNNING, epochs=0),
        trial(least + 3, TrialState.RUNNING, epochs=1),
    ]
    rows = [Row(EVIL, 4, 91.0, 90.5, 91.5, 90.8, 91.2, 225_034, 7.3, None, {})]
    rows.append(rows[0]._replace(name=f"{EVIL}, too", accuracy=90.0))
    against = Comparison(rows[1].name, -1.0, -1.5, -0.5, 0.001, 0.001, 0.001, "bootstrap")
    table = Table("val", "none", 10_000, EVIL, rows, [against], [EVIL])
    return search_page.page(
        EVIL,
        Trials(trials),
        [EVIL],
        table,
        winner=[EVIL],
        working={least + 1, least + 2},
    )


def test_what_comes_from_outside_is_escaped(page: str) -> None:
    assert page.count("<script") == page.count("<style") == 1
    assert "alert('&')" not in page
    for section in ("summary", "confirmation", "trials"):
        assert str(html.escape("<script>alert(")) in _section(page, section)


def test_nothing_is_loaded_from_a_network(page: str) -> None:
    assert "default-src 'none'" in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)


def test_no_trial_is_left_out_without_a_word(page: str) -> None:
    assert "Not shown: 4 trials that failed or are unfinished." in _section(page, "history")
    assert "Not shown: 1 trial without a finished epoch." in _section(page, "curves")
    below = re.search(r"(\d+) of 20 lie below the axis", _section(page, "history"))
    assert below
    assert 1 <= int(below[1]) <= 5
    assert len(re.findall("<tr><th scope=.row.>", _section(page, "trials"))) == 24


def test_running_and_interrupted_trials(page: str) -> None:
    running = _section(page, "running")
    assert "Running: trial 21, trial 22. 1 of them in the first epoch." in running
    assert "<svg" in running
    assert _section(page, "trials").count("<td>running") == 2
    assert _section(page, "trials").count("<td>interrupted") == 1


def test_a_search_that_has_just_begun() -> None:
    text = search_page.page("a", Trials([]), ["Running: 0 of 5 trials."], None)
    assert "Nothing has been trained on fresh seeds." in text
    assert '<section id="running"' not in text


def _section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)
    assert found
    return found[0]


def test_a_parameter_of_few_trials_is_a_sentence_and_no_warning() -> None:
    quieten()
    trials = [trial(number) for number in range(2 * search_page.LEAST)]
    rare = {"data.batch_size": FloatDistribution(1, 9)}
    first = create_trial(
        value=0.99,
        params=trials[0].params | {"data.batch_size": 2},
        distributions=DISTRIBUTIONS | rare,
    )
    chart = search_page._importance([first, *trials])  # noqa: SLF001
    assert chart is not None
    assert chart[1] == "Some parameters have too few trials for an accurate value."
