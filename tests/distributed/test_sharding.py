"""`--ddp-backend fully_sharded` is refused before there is a model to train."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from tiny import OURS, TASKS, build


@pytest.mark.parametrize("task", TASKS)
def test_a_model_is_not_built_inside_fairscales_wrapping(task, monkeypatch):
    wrapping = ModuleType("fairscale.nn.wrap.auto_wrap")
    wrapping.ConfigAutoWrap = SimpleNamespace(in_autowrap_context=True)
    monkeypatch.setitem(sys.modules, "fairscale.nn.wrap.auto_wrap", wrapping)
    with pytest.raises(ValueError, match="--ddp-backend 'fully_sharded' is not allowed"):
        build(task, OURS[task])
    wrapping.ConfigAutoWrap.in_autowrap_context = False
    build(task, OURS[task])
