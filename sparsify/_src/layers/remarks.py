"""`Remarks`: what a sparse layer tells when it is saved or evaluated; `training` has what is said then."""

from typing import Protocol


class Remarks(Protocol):
    """Is told how a layer is used, to say what the user should know."""

    @property
    def unfinished(self) -> str | None:
        """What pruning has still to do; None where it has reached its target."""

    def saved(self, how: str = "saved") -> None:
        """It is saved, or made dense."""

    def trained(self) -> None:
        """It is used in training."""

    def evaluated(self) -> None:
        """It is used without training."""
