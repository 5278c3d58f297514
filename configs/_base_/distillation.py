# Every distillation config inherits this file and its student: it imports mmkd, which registers its modules.
# DistillationHook cannot be set here: two base configs must not share a key, and students set default_hooks.
# mmkd's tools add the hook themselves.
custom_imports = dict(imports=['mmkd'], allow_failed_imports=False)
