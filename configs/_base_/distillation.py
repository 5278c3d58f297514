# What every distillation config needs beside its model.
custom_imports = dict(imports=['mmkd'], allow_failed_imports=False)

# default_hooks is a dict, so a config that replaces the list custom_hooks does not lose this hook.
default_hooks = dict(distillation=dict(type='DistillationHook'))

# CocoMetric and F1: best over thresholds, and at a fixed one.
val_evaluator = dict(type='CocoF1Metric')
test_evaluator = dict(type='CocoF1Metric')
