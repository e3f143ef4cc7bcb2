"""Fields of the parts of a trial that are functions or classes of the user's own modules."""

import inspect
import re
from typing import Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator

from raycap.host import user_code
from raycap.spec.base import Spec, broken_rule

IMPORTS = {"imports": True}
"""Validation context in which modules of the user are imported and checked. Without it, as for stored records, they are
not needed."""


class UserCode(Spec):
    """A function or class of a module of the user."""

    function: str
    """The function or class, in the form module:attribute. The module is searched in the folders of installed packages
    and of PYTHONPATH, and then in the working directory."""
    options: dict[str, Any] = Field(default={}, validate_default=True)
    """Keyword arguments of the function."""
    sha256: str | None = Field(default=None, validate_default=True)
    """SHA-256 of the source file that defines the function. `plan` fills it in, so that a changed file makes new trials.
    Set it to refuse other source code."""

    arguments: ClassVar[tuple[str, ...]] = ()
    """Names of the positional arguments that the function is called with."""

    @field_validator("function")
    @classmethod
    def _can_be_called(cls, function: str, info: ValidationInfo) -> str:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", function):
            raise broken_rule(
                "must have the form module:attribute, such as my_optimizers:lion, got '{got}'", got=function
            )
        if info.context == IMPORTS:
            try:
                attribute, _ = user_code.import_attribute(function)
            except user_code.UserCodeError as error:
                raise broken_rule("{problem}", problem=str(error)) from None
            if not callable(attribute):
                raise broken_rule("must name a function or class, got {got}", got=repr(attribute)[:80])
        return function

    @field_validator("options")
    @classmethod
    def _fit_the_function(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if info.context == IMPORTS and "function" in info.data:
            function = info.data["function"]
            attribute, _ = user_code.import_attribute(function)
            try:
                inspect.signature(attribute).bind(*cls.arguments, **options)
            except TypeError as error:
                call = ", ".join([*cls.arguments, *(f"{name}=..." for name in options)])
                raise broken_rule(
                    "{function} cannot be called with ({call}): {error}", function=function, call=call, error=str(error)
                ) from None
            except ValueError:  # some built-in functions have no signature
                pass
        return options

    @field_validator("sha256")
    @classmethod
    def _is_the_source(cls, sha256: str | None, info: ValidationInfo) -> str | None:
        if info.context == IMPORTS and "function" in info.data:
            return _load(info.data["function"], sha256)[1]
        return sha256

    def load(self) -> Any:
        """Import the function. Raises ValueError if its source is not that of the plan."""
        return _load(self.function, self.sha256)[0]


def _load(function: str, expected: str | None) -> tuple[Any, str]:
    """Return an imported function and the SHA-256 of its source. Raises PydanticCustomError, a ValueError."""
    try:
        attribute, sha256 = user_code.import_attribute(function)
    except user_code.UserCodeError as error:
        raise broken_rule("{problem}", problem=str(error)) from None
    if expected not in (None, sha256):
        raise broken_rule(
            "the source of {function} has SHA-256 {found}, not {expected}; restore the file, or plan the sweep again",
            function=function,
            found=sha256,
            expected=expected,
        )
    return attribute, sha256
