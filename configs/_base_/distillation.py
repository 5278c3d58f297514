# What every distillation config inherits beside its student: mmkd is imported, its modules registered.
# The hook cannot stand here: mmengine lets two bases share no key, and students have default_hooks.
custom_imports = dict(imports=['mmkd'], allow_failed_imports=False)
