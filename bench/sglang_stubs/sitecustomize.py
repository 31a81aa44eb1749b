"""Lets SGLang 0.5.16, which pins transformers 5.12, register model types that a newer transformers ships itself, and
0.5.23 build a model where CuTe DSL is not installed.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

MODULE = "transformers.models.auto.configuration_auto"


class _Tolerant(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            mapping: Any = module._LazyConfigMapping
            register = mapping.register
            mapping.register = lambda self, key, value, exist_ok=False: register(self, key, value, exist_ok=True)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


class _NoDualGemm(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "sglang.kernels.ops.gemm.cutedsl_dual_gemm" or importlib.util.find_spec("cutlass"):
            return None
        return importlib.util.spec_from_file_location(name, Path(__file__).with_name("no_dual_gemm.py"))


sys.meta_path[:0] = [_Tolerant(), _NoDualGemm()]
