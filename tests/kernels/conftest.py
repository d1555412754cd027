"""Interpreted kernels at a bearable speed."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None:
    from triton.runtime import interpreter

    _launch = interpreter.GridExecutor.__call__
    _call = interpreter.InterpretedFunction.__call__
    _patched: set[str] = set()

    def _launch_afresh(executor: Any, *args: Any, **kwargs: Any) -> Any:
        _patched.clear()
        return _launch(executor, *args, **kwargs)

    def _call_patching_once(function: Any, *args: Any, **kwargs: Any) -> Any:
        """A call from one kernel function to another patches triton.language again each time, a third of the run time.

        Once per launch and module is enough.
        """
        module = function.fn.__module__
        if module in _patched:
            return function.rewrite()(*args, **kwargs)
        _patched.add(module)
        return _call(function, *args, **kwargs)

    interpreter.GridExecutor.__call__ = _launch_afresh
    interpreter.InterpretedFunction.__call__ = _call_patching_once
