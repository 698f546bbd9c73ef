"""What evolutions did, for tables, files, TensorBoard, Weights & Biases, Lightning and Transformers."""

from sparsify._src.telemetry.lines import Lines, write_lines
from sparsify._src.telemetry.rows import frame, rows, scalars
from sparsify._src.telemetry.tensorboard import TensorBoard
from sparsify._src.telemetry.trainers import lightning_callback, trainer_callback

__all__ = ["Lines", "TensorBoard", "frame", "lightning_callback", "rows", "scalars", "trainer_callback", "write_lines"]
