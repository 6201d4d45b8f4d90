"""Fine-tuning: the whole model at once, by the gradient of its own loss; what the distillation does without."""

from lillama.finetune.checks import check_finetune
from lillama.finetune.loop import Update, fine_tune
from lillama.finetune.tuned import Tuned

__all__ = ["Tuned", "Update", "check_finetune", "fine_tune"]
