"""The page of a search; tests/test_tune.py looks at one that a real search has made."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from test_report import EVIL, Page

from fashion.compare import Comparison, Row, Table
from fashion.search import page as search_page
from fashion.search.study import REASON, quieten

KEY = "<script>1</script>&"  # there is a label of it on an axis
DISTRIBUTIONS = {
    "optimizer.lr": FloatDistribution(0.0001, 0.01, log=True),
    KEY: CategoricalDistribution([KEY, "relu"]),
}


def trial(number: int, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    failed = state == TrialState.FAIL
    return create_trial(
        state=state,
        value=None if failed else 0.8 + number / 1000,
        params={"optimizer.lr": 0.001, KEY: KEY if number % 2 else "relu"},
        distributions=DISTRIBUTIONS,
        intermediate_values={1: 0.5, 2: 0.6},
        user_attrs={REASON: EVIL} if failed else {},
    )


@pytest.fixture(scope="module")
def page() -> Page:
    """Where every word that a stranger may have chosen is a hostile one."""
    quieten()
    trials = [trial(0), *(trial(n, TrialState.PRUNED) for n in range(1, search_page.LEAST))]
    trials.append(trial(search_page.LEAST, TrialState.FAIL))
    rows = [Row(EVIL, 4, 91.0, 90.5, 91.5, 90.8, 91.2, 225_034, 7.3)]
    rows.append(rows[0]._replace(name=f"{EVIL}, too", accuracy=90.0))
    against = Comparison(rows[1].name, -1.0, -1.5, -0.5, 0.001, 0.001, "bootstrap")
    verdict = Table("val", "single", 10_000, EVIL, rows, [against], [EVIL])
    return Page(search_page.page(EVIL, trials, [EVIL], verdict))


def test_whatever_comes_from_outside_is_escaped(page: Page) -> None:
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert page.all("img") == []
    assert EVIL in page.text[""]  # the heading
    for section in ("summary", "verdict", "trials"):
        assert EVIL in page.text[section]


def test_nothing_is_asked_of_a_network(page: Page) -> None:
    (policy,) = [
        meta["content"] or ""
        for meta in page.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'")
    for _, attributes in page.elements:
        assert not {"src", "href"} & {
            key for key, value in attributes.items() if not (value or "").startswith(("#", "data:"))
        }
