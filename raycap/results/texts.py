"""Texts of measured numbers, the same in the terminal, reports, MLflow and model cards."""


def bits_per_param_text(bits_per_param: float, digits: int = 3) -> str:
    """Return learned bits per parameter as text, or a dash if nothing is learned.

    Learned bits are negative if the losses cost more than the code of the names alone, which is the number of a bad
    predictor and not of a capacity.
    """
    return f"{bits_per_param:.{digits}f}" if bits_per_param > 0 else "–"
