"""What a stage says of the model's groups, checked before it begins."""

from __future__ import annotations

from tpo_core.config.recipe import StageConfig
from tpo_core.jobs.keeping import check_keeping
from tpo_core.model import TPOModel
from tpo_core.train import resolve_muon_rates, resolve_rates


def checked_rates(stage: StageConfig, model: TPOModel) -> dict[str, float]:
    """Return the stage's learning rate of each group that trains, once all that the stage says of groups was found to hold.

    Raises:
        ConfigError: a group that the model has not, Muon for one that does not train, or `keep_states` where something before heads trains.
    """
    rates = resolve_rates(stage, model.groups())
    resolve_muon_rates(stage, model.groups())
    if stage.keep_states is not None:
        check_keeping(stage, model, rates)
    return rates
