"""Where the registries and the configurations of the commands are defined."""

from __future__ import annotations

KINDS = {
    "pairs": "medcl3d.pairs:PAIRS",
    "views": "medcl3d.views:VIEWS",
    "encoders": "medcl3d.encoders:ENCODERS",
    "objectives": "medcl3d.objectives:OBJECTIVES",
    "sources": "medcl3d.datasets.sources:SOURCES",
    "tasks": "medcl3d.downstream.tasks:TASKS",
}
ASSEMBLE = {
    "pretrain": "medcl3d.pretraining.parts:assemble",
    "finetune": "medcl3d.downstream.finetune:assemble",
    "evaluate": "medcl3d.downstream.evaluate:assemble",
}
"""Functions that build the parts of a run from its configuration, and run nothing."""

CONFIGS = {
    "pretrain": "medcl3d.pretraining.config:PretrainConfig",
    "finetune": "medcl3d.downstream.finetune:FinetuneConfig",
    "evaluate": "medcl3d.downstream.evaluate:EvaluateConfig",
    "compare": "medcl3d.comparison.plan.runs:CompareConfig",
}
