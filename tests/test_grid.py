"""Grids: every combination once, and a cell's settings land where their flags say."""

from __future__ import annotations

import pytest

from facerec.errors import ConfigError
from facerec.grid import cell_id, cells, with_settings
from facerec.training.config import TrainConfig


def test_a_grid_is_every_combination_once() -> None:
    grid = {"batch.p": [8, 16], "seed": [0, 1, 2]}
    made = cells(grid)
    assert len(made) == len({cell_id(cell) for cell in made}) == 6
    assert made[:2] == [{"batch.p": 8, "seed": 0}, {"batch.p": 8, "seed": 1}]
    assert cells({}) == [{}]


def test_a_cells_name_does_not_depend_on_the_order_of_its_settings() -> None:
    assert cell_id({"a": 1, "b": 2}) == cell_id({"b": 2, "a": 1}) != cell_id({"a": 2, "b": 1})


def test_settings_land_where_their_flags_say() -> None:
    config = with_settings(TrainConfig(), {"batch.p": 8, "mining.margin": 2.0, "seed": 5})
    assert (config.batch.p, config.mining.margin, config.seed) == (8, 2.0, 5)
    assert config.batch.k == TrainConfig().batch.k


def test_settings_that_are_right_only_together_are_put_in_together() -> None:
    config = with_settings(TrainConfig(), {"mining.strategy": "n_pair", "mining.soft": 5.0})
    assert (config.mining.strategy, config.mining.soft) == ("n_pair", 5.0)


@pytest.mark.parametrize("wrong", ["batch.q", "bach.p", "seed.x", "batch.p.x"])
def test_an_unknown_setting_is_named(wrong: str) -> None:
    with pytest.raises(ConfigError, match=rf"{wrong} is no setting"):
        with_settings(TrainConfig(), {wrong: 1})


def test_a_rule_of_the_configuration_holds_in_a_cell_too() -> None:
    with pytest.raises(ConfigError, match="margin is 9"):
        with_settings(TrainConfig(), {"mining.margin": 9})


def test_a_value_of_another_type_is_named() -> None:
    with pytest.raises(ConfigError, match=r"mining\.margin 'wide'"):
        with_settings(TrainConfig(), {"mining.margin": "wide"})


def test_a_setting_without_values_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch\.p has no values"):
        cells({"batch.p": []})
