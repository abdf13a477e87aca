"""The mechanisms, one file each. Importing this package imports every file in it, which registers its mechanism."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
