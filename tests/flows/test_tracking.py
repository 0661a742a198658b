import logging

from flows.shown import escape_markdown, verdict_markdown
from flows.tracking import PrefectTracker


def test_outside_a_run_notes_go_to_the_given_logger(caplog):
    with caplog.at_level(logging.INFO):
        PrefectTracker(logging.getLogger("mine")).note("50% \x1b[2J %s")
    assert caplog.messages == ["50% \\x1b[2J %s"]


def test_progress_is_ten_seconds_apart_and_the_last_always_comes(caplog):
    now = [0.0]
    tracker = PrefectTracker(logging.getLogger("mine"), clock=lambda: now[0])
    with caplog.at_level(logging.INFO):
        for done in range(26):
            tracker.progress("train", done, 25, "steps")
            now[0] += 1
    assert [message.split(" of ")[0] for message in caplog.messages] == [
        "train: 10",
        "train: 20",
        "train: 25",
    ]


def test_markdown_shows_user_text_as_it_is():
    assert escape_markdown("<img src=x>\n# [a](b) | `c`") == (
        r"\<img src=x\> \# \[a\]\(b\) \| \`c\`"
    )


def test_the_verdict_lists_its_reasons_before_the_classes():
    told = verdict_markdown({"sentence": "Use it.", "reasons": ["coat is worse."], "per_class": []})
    assert told.startswith("**Use it.**\n\n- coat is worse.\n\n| class |")
    assert verdict_markdown({"sentence": "Use it."}).startswith("**Use it.**\n\n| class |")
