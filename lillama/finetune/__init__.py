"""Fine-tuning: the whole model at once, by the gradient of a loss of its logits; what the distillation does without."""

from lillama.finetune.checks import check_finetune, check_teacher
from lillama.finetune.loop import Update, fine_tune
from lillama.finetune.teacher import dense_teacher
from lillama.finetune.trainable import TrainableModel

__all__ = ["TrainableModel", "Update", "check_finetune", "check_teacher", "dense_teacher", "fine_tune"]
