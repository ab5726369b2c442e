"""An objective from outside the package trains by its name, on numbers that the rows hold beside their conversation."""

import json

import pytest
from few_steps import losses, train, write_colours

from cobra.util.errors import UserError

START = ("--pretrained_checkpoint", "cobra-tiny")


@pytest.fixture(autouse=True)
def registered(extend):
    extend("reward_weighted")


def with_rewards(root, rewards):
    path = write_colours(root) / "rows.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([row | {"reward": reward} for row, reward in zip(rows, rewards, strict=True)]))
    return root


def test_equal_rewards_are_the_usual_loss_times_the_reward(tmp_path):
    (tmp_path / "usual").mkdir()
    usual = losses(train(write_colours(tmp_path / "usual"), *START))
    weighted = losses(train(with_rewards(tmp_path, [0.5] * 4), *START, "--objective", "reward-weighted"))
    assert weighted[0] == pytest.approx(usual[0] / 2, rel=1e-4)
    assert weighted[1] < weighted[0]


def test_rows_without_a_reward_are_named(tmp_path):
    with pytest.raises(UserError, match=r"rows.json.* None under `reward`, where --objective needs a finite number"):
        train(write_colours(tmp_path), *START, "--objective", "reward-weighted")
