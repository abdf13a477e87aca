"""The stages of a run, train, generate and eval-lm, as commands that build fairseq's command line from the recipe."""

import argparse
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fairseq_gpam
from fairseq_gpam import engine, plugins
from fairseq_gpam.arguments import add_output_folder, positive_number, run_name, seed
from fairseq_gpam.attention.core.heads import mechanism_names
from fairseq_gpam.attention.core.presets import check_known
from fairseq_gpam.lab.recipes import logs, run_folder, stage_results, tasks
from fairseq_gpam.lab.recipes.engine_process import stop_on_sigterm
from fairseq_gpam.lab.recipes.run_folder import Run, RunError
from fairseq_gpam.lab.recipes.tasks import Task

USER_DIR = Path(fairseq_gpam.__path__[0]).resolve()
EVALUATION_FLAGS = ("--required-batch-size-multiple", "1", "--no-progress-bar", "--log-format", "json")
# Makes an epoch's batches depend on its number, so that a resumed run sees those of an uninterrupted one.
TRAINING_FLAGS = ("--update-epoch-batch-itr", "True", *EVALUATION_FLAGS)


@dataclass(frozen=True)
class RunSettings:
    """A run's task, mechanism, seed and output folder; `extra` holds the user's fairseq flags.

    A run of a grid with several learning rates has its `arm` and `learning_rate` in its results; only they count, its
    name may show them.
    """

    task: Task
    mechanism: str
    seed: int
    out: Path
    name: str
    full: bool = False
    checkpoint: str = "checkpoint_best.pt"
    overwrite: bool = False
    extra: tuple[str, ...] = ()
    arm: str = ""
    learning_rate: float | None = None

    @property
    def run_group(self) -> str:
        """Returns the task's name in the run's folder and results, which has a suffix for the full budget."""
        return f"{self.task.name}{'-full' if self.full else ''}"

    @property
    def folder(self) -> Path:
        """Returns the run's folder, without the colons of a mixture of heads, at which fairseq splits paths."""
        return self.out / "runs" / self.run_group / self.name.replace(":", "-") / str(self.seed)

    @property
    def checkpoints(self) -> Path:
        return self.folder / run_folder.CHECKPOINTS

    @property
    def run(self) -> Run:
        return Run(self.folder, self.task.name, self.name, self.seed, self.arm, self.learning_rate)


def check_mechanism(spec: str, flags: Sequence[str]) -> None:
    """Raises RunError if `spec` is malformed or names an unknown mechanism that no named file can bring."""
    if spec == "stock" or plugins.named_files(flags):
        return
    try:
        for name in mechanism_names(spec):
            check_known(name, spec)
    except ValueError as error:
        raise RunError(str(error)) from error


def settings(arguments: argparse.Namespace) -> RunSettings:
    """Returns the settings from the command line; raises TaskError or RunError if they contradict each other."""
    task = tasks.load(arguments.task)
    if arguments.full and not task.full_budget:
        raise RunError(f"{task.name} has one budget; leave out --full")
    stock = arguments.stock or arguments.mechanism == "stock"
    if stock and arguments.mechanism not in ("softmax", "stock"):
        raise RunError(f"--stock goes with softmax, not '{arguments.mechanism}'")
    mechanism = "stock" if stock else arguments.mechanism
    return RunSettings(
        task=task,
        mechanism=mechanism,
        seed=arguments.seed,
        out=arguments.out.resolve(),
        name=arguments.name or mechanism,
        full=arguments.full,
        checkpoint=getattr(arguments, "checkpoint", RunSettings.checkpoint),
        overwrite=getattr(arguments, "overwrite", False),
        extra=tuple(arguments.further_flags),
        arm=getattr(arguments, "arm", None) or "",
        learning_rate=getattr(arguments, "learning_rate", None),
    )


def rate_text(rate: float) -> str:
    """Returns a learning rate as its shortest decimal number."""
    return repr(float(rate)).removesuffix(".0")


def need_data(run: RunSettings) -> None:
    """Raises RunError, with the command that prepares the data, if the data does not exist."""
    data_bin = run.task.data_bin(run.out)
    if not data_bin.is_dir():
        raise RunError(f"no data in {data_bin}; first run: fairseq-gpam prepare {run.task.reference} --out {run.out}")


def languages(task: Task) -> list[str]:
    """Returns the flags that name a translation's languages."""
    return ["--source-lang", task.source, "--target-lang", task.target] if task.is_translation else []


def train_command(run: RunSettings) -> list[str]:
    """Returns fairseq-train's command line."""
    task = run.task
    family = "transformer" if task.is_translation else "transformer_lm"
    model = ["--arch", task.arch]
    if run.mechanism != "stock":
        model = ["--arch", task.arch.replace(family, f"{family}_gpam", 1), "--gpam-mechanism", run.mechanism]
    rate = [] if run.learning_rate is None else ["--lr", rate_text(run.learning_rate)]
    saving: list[str] = []
    if task.keep_checkpoints:
        saving = ["--no-epoch-checkpoints", "--keep-interval-updates", str(task.keep_checkpoints)]
    return [
        *("fairseq-train", str(task.data_bin(run.out)), "--user-dir", str(USER_DIR)),
        *("--task", "translation" if task.is_translation else "language_modeling", *languages(task)),
        *("--save-dir", str(run.checkpoints), "--seed", str(run.seed), *model, *task.train),
        *(task.full_budget if run.full else task.budget),
        *(*TRAINING_FLAGS, *saving, *run.extra, *rate),
    ]


def evaluation_command(run: RunSettings) -> list[str]:
    """Returns the command line of fairseq-generate, fairseq-eval-lm or, for a text with questions, fairseq-validate."""
    program, flags = "fairseq-generate", languages(run.task)
    if not run.task.is_translation:
        program, flags = "fairseq-eval-lm", []
        if run.task.has_questions:
            program, flags = "fairseq-validate", ["--task", "language_modeling"]
    flags += run.task.evaluate
    trained = run.folder / "train.command"
    if program == "fairseq-eval-lm" and trained.exists():
        # fairseq silently skips blocks that are longer than the model allows.
        length = run_folder.last_flag(stage_results.read_command(trained), "--tokens-per-sample")
        if length and length != run_folder.last_flag(flags, "--tokens-per-sample"):
            flags += ["--tokens-per-sample", length]
    return [
        *(program, str(run.task.data_bin(run.out)), "--user-dir", str(USER_DIR)),
        *("--path", str(run.checkpoints / run.checkpoint), "--gen-subset", "test"),
        # A loader process can outlive an evaluation that was stopped, and would keep the run's folder locked.
        *(*flags, "--num-workers", "0", *EVALUATION_FLAGS, *run.extra),
    ]


def train(run: RunSettings) -> None:
    """Trains the model, or resumes training."""
    check_mechanism(run.mechanism, run.extra)
    need_data(run)
    run_folder.train(run.run, train_command(run))


def generate(run: RunSettings) -> None:
    """Translates the test set."""
    if not run.task.is_translation:
        raise RunError(f"{run.task.name} is a language model; use eval-lm")
    need_data(run)
    run_folder.generate(run.run, evaluation_command(run), run.overwrite)


def evaluate(run: RunSettings) -> None:
    """Evaluates a language model on the test set, of a text with questions only its answers, on every test set."""
    task = run.task
    if task.is_translation:
        raise RunError(f"{task.name} is a translation task; use generate and score")
    need_data(run)
    test = f"test.{task.suffixes[0]}"
    text, subword = task.text(run.out) / test, task.binarised_text(run.out) / test

    def measure(log: str) -> dict[str, Any]:
        if task.has_questions:
            return {"answers": logs.parse_answers(log)}
        return logs.of_text(logs.parse_evaluation_log(log), text, subword, task.data.subwords == "bytes")

    measured = run_folder.evaluate(run.run, evaluation_command(run), measure, run.overwrite)
    for name, answer in measured.get("answers", {}).items():
        run.run.say(f"{name}: {answer['accuracy']:.1%} of the answers right, {answer['loss']:.4f} bits an answer")
    if "bits_per_character" in measured:
        run.run.say(f"{measured['bits_per_character']:.4f} bits per character")
    elif "perplexity_word" in measured:
        run.run.say(
            f"perplexity {measured['perplexity_subword']:.2f} per subword, {measured['perplexity_word']:.2f} per word"
        )


class StageCommand:
    """One stage as a command of `python -m fairseq_gpam`."""

    TAKES_FLAGS_AFTER_DASHES = True

    def __init__(self, doc: str, stage: Callable[[RunSettings], None], program: str, checkpoint: bool = True) -> None:
        self.__doc__ = doc
        self.stage = stage
        self.program = program
        self.checkpoint = checkpoint

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the arguments that all stages share."""
        parser.usage = f"%(prog)s TASK MECHANISM [SEED] [options] [-- {self.program} flags]"
        parser.epilog = f"Everything after -- goes to {self.program} and overrides the recipe's flags."
        parser.add_argument("task", metavar="TASK", help=tasks.HELP)
        mechanism = f"what --gpam-mechanism takes, or stock ({engine.STOCK})"
        parser.add_argument("mechanism", metavar="MECHANISM", help=mechanism)
        parser.add_argument("seed", metavar="SEED", nargs="?", type=seed, default=1, help="default 1")
        parser.add_argument("--stock", action="store_true", help="fairseq's own, unmodified model (with softmax)")
        parser.add_argument("--full", action="store_true", help="the budget that trains to convergence")
        parser.add_argument(
            "--name", type=run_name, help="name of the run (default: MECHANISM), for variants of a mechanism"
        )
        add_output_folder(parser)
        if not self.checkpoint:
            parser.add_argument("--arm", help="the arm of a grid to which the run belongs, if it is not its name")
            parser.add_argument(
                "--learning-rate",
                type=positive_number,
                metavar="RATE",
                help="recorded with the results, and fairseq's --lr",
            )
        else:
            parser.add_argument(
                "--checkpoint",
                default=RunSettings.checkpoint,
                metavar="NAME",
                help="file in the run's checkpoints/ (default: %(default)s)",
            )
            parser.add_argument(
                "--overwrite",
                action="store_true",
                help="evaluate again and replace the result there, whatever its command line",
            )

    def run(self, arguments: argparse.Namespace) -> int:
        """Runs the stage; an interruption gives status 130."""
        one_thread()
        stop_on_sigterm()
        try:
            self.stage(settings(arguments))
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        return 0


def one_thread() -> None:
    """Sets the number of threads to 1 unless the user has set it, so that a seed always gives the same losses."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


TRAIN = StageCommand(
    """Trains one model on a task's prepared data.

    Writes the command line, log, checkpoints and results.json to DIR/runs/TASK[-full]/NAME/SEED. After an
    interruption, the same command resumes training; a finished training is not repeated; a changed flag is refused.
    OMP_NUM_THREADS is 1 unless set.
    """,
    train,
    "fairseq-train",
    checkpoint=False,
)
GENERATE = StageCommand(
    """Translates a task's test set with the best checkpoint of a trained run.

    Writes hypotheses.txt (in the test set's order, and tokenised if the task's text is), generate.out and
    generate.log to the run's folder.
    """,
    generate,
    "fairseq-generate",
)
EVAL_LM = StageCommand(
    """Evaluates the best checkpoint of a trained language model on the task's test set.

    Prints its perplexity per subword and per word, both counting one end-of-line symbol per line, or, if the tokens
    are bytes, its bits per character. Writes eval-lm.log to the run's folder.
    """,
    evaluate,
    "fairseq-eval-lm",
)


def run_of(folder: Path) -> tuple[Path, Task]:
    """Returns the output folder and the task of a run in `OUT/runs/TASK[-full]/NAME/SEED`."""
    # `runs` may be a link to another disk, whose own parents are no output folder.
    named = Path(os.path.abspath(folder))
    folder = named if named.parent.parent.parent.name == "runs" else folder.resolve()
    return folder.parents[3], tasks.of_runs(folder.parents[1].name, folder.parents[3])
