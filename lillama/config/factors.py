"""Configure how factors are stored."""

from dataclasses import dataclass

from lillama.config.choices import FactorForm
from lillama.config.option import option


@option("factors", "factors")
@dataclass(kw_only=True, slots=True)
class FactorsConfig:
    """Storage of factors: the same function in fewer numbers where they are pivoted."""

    form: FactorForm = FactorForm.plain
