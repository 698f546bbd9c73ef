"""Callbacks that hand records to the loggers of Lightning and of Transformers' Trainer."""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from sparsify._src.checks import shown
from sparsify._src.telemetry.new_records import NewRecords
from sparsify._src.telemetry.rows import scalars

LIGHTNING = ("lightning.pytorch", "pytorch_lightning")
"""The two names of the same package."""


def lightning_callback() -> Any:
    """A Lightning callback that hands the `scalars` of each evolution to the trainer's loggers, whichever they are.

    They get them after the batch in which the evolution came, at the step at which Lightning logs what the module logs
    in that batch; each once, after resuming too. It works with automatic and manual optimization. Where several
    optimizers evolve, their names begin with `sparsify-0`, `sparsify-1` and so on, in the order of
    `configure_optimizers`. What evolved before `fit` is not logged.

    Returns:
        a `lightning.pytorch.Callback`, or `pytorch_lightning.Callback`: of what has been imported, else of what is
        installed.
    Raises:
        ModuleNotFoundError: neither is installed.
    Example:
        >>> from lightning.pytorch import Trainer
        >>> callback = telemetry.lightning_callback()
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
    """
    imported = [sys.modules[name].Callback for name in LIGHTNING if name in sys.modules]
    if not imported:
        installed = [name for name in LIGHTNING if find_spec(name.partition(".")[0])]
        if not installed:
            raise ModuleNotFoundError(
                "lightning must be installed where lightning_callback() is used. Install it: pip install lightning.",
                name="lightning",
            )
        imported = [import_module(installed[0]).Callback]
    return type("LightningCallback", (_ToLightning, *imported), {})()


class _ToLightning:
    """What `lightning_callback` adds to Lightning's class."""

    def __init__(self) -> None:
        super().__init__()
        self._new = NewRecords()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """What a checkpoint has brought was logged before it was saved."""
        self._new.skip(trainer.optimizers)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Log what has evolved in this batch."""
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # as Lightning's own monitors have it
        for prefix, record in self._new.take(trainer.optimizers):
            for logger in trainer.loggers:
                logger.log_metrics(scalars(record, prefix), step=step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Log what has evolved since the last batch."""
        self.on_train_batch_end(trainer)

    def __reduce__(self) -> tuple[Any, ...]:
        return lightning_callback, ()


def trainer_callback(trainer: Any) -> Any:
    """A callback for Transformers' Trainer: hands the `scalars` of each evolution to whatever `report_to` has set up.

    They go through `trainer.log`, so that they are in `trainer.state.log_history` too, at the step in which the
    evolution came; each once, after resuming too. What evolved before `train` is not logged.

    Args:
        trainer: a `transformers.Trainer`, which gets what is returned: `trainer.add_callback(...)`.
    Returns:
        a `transformers.TrainerCallback`.
    Raises:
        ModuleNotFoundError: transformers is not installed.
        TypeError: trainer is none.
    Example:
        >>> from transformers import Trainer, TrainingArguments
        >>> model = nn.Sequential(nn.Linear(20, 10))
        >>> model, sgd = sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), density=0.5, steps=100)
        >>> arguments = TrainingArguments("runs", report_to=[], use_cpu=True)
        >>> trainer = Trainer(model, arguments, optimizers=(sgd, None))
        >>> trainer.add_callback(telemetry.trainer_callback(trainer))
    """
    if not callable(getattr(trainer, "log", None)) or not hasattr(trainer, "optimizer"):
        raise TypeError(
            f"trainer must be a transformers.Trainer, got {shown(trainer)}. Make it first, and then "
            "trainer.add_callback(trainer_callback(trainer))."
        )
    callback = _new_trainer_callback()
    callback.trainer = trainer
    return callback


def _new_trainer_callback() -> Any:
    try:
        from transformers import TrainerCallback
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"transformers must be installed where trainer_callback(trainer) is used, got: {error}. Install it: pip "
            "install transformers.",
            name=error.name,
        ) from error
    return type("SparsifyCallback", (_ToTrainer, TrainerCallback), {})()


class _ToTrainer:
    """What `trainer_callback` adds to the class of Transformers."""

    trainer: Any

    def __init__(self) -> None:
        super().__init__()
        self._new = NewRecords()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """What a checkpoint has brought was logged before it was saved."""
        self._new.skip([self.trainer.optimizer])

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Log what has evolved in this step."""
        for prefix, record in self._new.take([self.trainer.optimizer]):
            self.trainer.log(scalars(record, prefix))

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Log what has evolved since the last step."""
        self.on_step_end()

    def __reduce__(self) -> tuple[Any, ...]:
        return _new_trainer_callback, (), {"trainer": self.trainer}  # which may hold this callback
