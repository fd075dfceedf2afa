"""Samplers of Optuna, used trial by trial: each trial is drawn by a sampler with its own seed, given the earlier
trials."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from healsg.errors import ConfigError
from healsg.sweeps.proposals import Mode, Search, Trial
from healsg.sweeps.space import Choice, Dimension, Space, Value
from healsg.types import Count, Factor, Natural


class Random(Search):
    """Random search.

    Args:
        trials: the total number of trials.
        batch: trials of a round.
        seed: of the proposals; that of the runs is the key ``seed`` of the whole configuration.
        rungs, factor: see ``Search``.
    """

    def __init__(
        self, trials: Count = 24, batch: Count = 4, seed: Natural = 0, rungs: Count = 1, factor: Factor = 3
    ) -> None:
        super().__init__(trials, batch, rungs, factor)
        self.seed = seed

    def check(self, space: Space) -> None:
        if find_spec("optuna") is None:
            raise ConfigError("search: needs Optuna; pip install 'healsg[search]'")

    def count(self, space: Space) -> int:
        assert self.trials is not None
        return self.trials

    def propose(self, space: Space, number: int, before: Sequence[Trial], mode: Mode) -> dict[str, Value]:
        """The study exists only for one proposal, so that it depends on nothing but the given trials."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        distributions = {key: _distribution(dimension) for key, dimension in space.items()}
        with warnings.catch_warnings(action="ignore"):  # of what is experimental in Optuna
            sampler = self.sampler(_seed(self.seed, number))
            study = optuna.create_study(direction="maximize" if mode == "max" else "minimize", sampler=sampler)
            study.add_trials([_trial(trial, distributions) for trial in before])
            asked = study.ask(distributions)
        return {key: asked.params[key] for key in space}

    def sampler(self, seed: int) -> Any:
        """Optuna's sampler for one trial."""
        from optuna.samplers import RandomSampler

        return RandomSampler(seed)

    def settings(self) -> dict[str, object]:
        return super().settings() | {"search.seed": self.seed}


class TPE(Random):
    """The tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms for hyper-parameter optimization").

    Trials of the same round count as bad ones when the next of them is drawn (the constant liar of Ginsbourger et al.
    2010), so that they are not all alike.

    Args:
        trials: the total number of trials.
        batch: trials of a round.
        seed: of the proposals; that of the runs is the key ``seed`` of the whole configuration.
        rungs, factor: see ``Search``.
        startup: trials drawn at random before the estimator proposes.
    """

    def __init__(
        self,
        trials: Count = 24,
        batch: Count = 4,
        seed: Natural = 0,
        startup: Natural = 10,
        rungs: Count = 1,
        factor: Factor = 3,
    ) -> None:
        super().__init__(trials, batch, seed, rungs, factor)
        self.startup = startup

    def sampler(self, seed: int) -> Any:
        from optuna.samplers import TPESampler

        return TPESampler(n_startup_trials=self.startup, constant_liar=True, multivariate=True, seed=seed)

    def settings(self) -> dict[str, object]:
        return super().settings() | {"search.startup": self.startup}


class GP(TPE):
    """Bayesian optimization with a Gaussian process (Snoek et al. 2012, "Practical Bayesian optimization of machine
    learning algorithms") and the logarithm of the expected improvement (Ament et al. 2023).

    A proposal takes more time than with ``TPE``, so it is for some tens of trials over few keys. Trials of the same
    round count as points whose values are not known yet. Arguments are those of ``TPE``.
    """

    def check(self, space: Space) -> None:
        super().check(space)
        if find_spec("scipy") is None:
            raise ConfigError("search: the Gaussian process needs SciPy; pip install 'healsg[search]'")

    def sampler(self, seed: int) -> Any:
        from optuna.samplers import GPSampler

        return GPSampler(n_startup_trials=self.startup, seed=seed)


def _seed(seed: int, number: int) -> int:
    """Of one trial, in 32 bits."""
    return int.from_bytes(hashlib.sha256(f"search/{seed}/{number}".encode()).digest()[:4], "little")


def _distribution(dimension: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.values)
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=dimension.step)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _trial(trial: Trial, distributions: dict[str, Any]) -> Any:
    """A trial as Optuna has it."""
    from optuna.trial import TrialState, create_trial

    states = {"finished": TrialState.COMPLETE, "failed": TrialState.FAIL, "open": TrialState.RUNNING}
    return create_trial(
        state=states[trial.status], value=trial.value, params=dict(trial.parameters), distributions=distributions
    )
