"""daGPAM attention for fairseq, with the mechanisms it is compared with: the package that `--user-dir` points to.

Importing it checks the installed fairseq, makes its loading of checkpoints safe, arranges a clean end of distributed
training, and registers models, architectures, the optimiser and the mechanisms of installed packages. Importing it
again is harmless.
"""

from fairseq_gpam import engine

__version__ = "0.1.0"

engine.check()
engine.allow_checkpoint_types()
engine.leave_process_group_at_exit()

from fairseq_gpam import checkpoints, models, optim, plugins  # noqa: E402
from fairseq_gpam.modules import register_attention_hook  # noqa: E402

checkpoints.guard_engine()
plugins.import_entry_points()

__all__ = ["__version__", "engine", "models", "optim", "plugins", "register_attention_hook"]
