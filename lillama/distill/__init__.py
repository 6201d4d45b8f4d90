"""Local updates: every compressed block learns its twin's outputs (Section 4), in one order or another."""

from collections.abc import Callable

from lillama.config import BlockwiseConfig, DistillConfig, LossConfig, ScheduleConfig
from lillama.data.calibration import Calibration
from lillama.distill.blockwise import learn_blockwise
from lillama.distill.joint import learn_jointly
from lillama.distill.progress import LoopContext, Progress
from lillama.model.student import Student

__all__ = ["LoopContext", "Progress", "distill"]
Schedule = Callable[[Student, Calibration, DistillConfig, LossConfig, LoopContext], None]
SCHEDULES: dict[type, Schedule] = {ScheduleConfig: learn_jointly, BlockwiseConfig: learn_blockwise}


def distill(
    student: Student, data: Calibration, config: DistillConfig, loss: LossConfig, context: LoopContext | None = None
) -> None:
    """Distil every block of a student by local updates, in place.

    :param data: calibration tokens, read ``config.epochs`` times. :param context: how it is run; by default alone,
        without snapshots.
    :raises DivergedError: for a loss that is not finite; it names the block and the step.
    """
    SCHEDULES[type(config.schedule)](student, data, config, loss, context or LoopContext())
